"""How much one request may ask for, and the error that a refused request gets."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The bounds of the service. A request beyond one of them is refused before anything is computed."""

    body_bytes: int = 4 << 20
    texts: int = 1000
    """Texts for one specialist."""
    characters: int = 2_000_000
    """In all these texts together."""
    passages: int = 200
    """That choose the domain weights; the rest of the texts is not read (`max_texts` of the specialize job)."""
    max_tokens: int = 1024
    """For one completion; a model may have fewer positions."""
    prompt_characters: int = 100_000
    prompts: int = 16
    """In one request."""
    completions: int = 32
    """Prompts times n."""
    stops: int = 4
    stop_characters: int = 200
    seconds: float = 120.0
    """From a request's arrival to the end of its answer, the wait in the queue included."""
    body_seconds: float = 30.0
    """Until a request's body has arrived."""
    connections: int = 512


@dataclass(eq=False)
class Refused(Exception):
    """Answers the request with an error, in the form that OpenAI's clients read."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    def body(self) -> dict[str, dict[str, str | None]]:
        """The JSON of the answer."""
        return error_body(self.status, self.message, code=self.code, param=self.param)


def error_body(
    status: int, message: str, *, code: str | None = None, param: str | None = None
) -> dict[str, dict[str, str | None]]:
    """``{"error": {message, type, param, code}}``."""
    kinds = {401: "authentication_error", 403: "permission_error"}
    kind = "server_error" if status >= 500 else kinds.get(status, "invalid_request_error")
    # The message may quote what the client sent; half a surrogate pair cannot be sent back.
    safe = message.encode("utf-8", "backslashreplace").decode("utf-8")
    return {"error": {"message": safe, "type": kind, "param": param, "code": code}}


def too_many(what: str, found: int, bound: int, *, param: str, status: int = 413) -> None:
    """Raises :class:`Refused` if `found` is more than `bound`; the message names both."""
    if found > bound:
        raise Refused(
            status, f"{what}: {found:,}, and at most {bound:,} are taken.", code="too_large", param=param
        )


def whole_unicode(text: str) -> str:
    """The text. Raises ValueError, for pydantic's validators, if it cannot be written as UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"it is not Unicode text: half a surrogate pair at character {error.start}"
        ) from error
    return text
