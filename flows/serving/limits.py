"""How much one request may ask for, and what a refused one is told."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of the service. A request beyond one is refused before anything is computed."""

    body_bytes: int = 4 << 20
    texts: int = 1000
    """Texts that may be given for one specialist."""
    characters: int = 2_000_000
    """Of them all together."""
    passages: int = 200
    """That choose domain weights; what is more in the texts is not read (`max_texts` of the specialize job)."""
    max_tokens: int = 1024
    """That one completion may ask for; a model may have fewer positions."""
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
    """For a request's body to arrive."""
    connections: int = 512


@dataclass(eq=False)
class Refused(Exception):
    """A request that is answered with an error, in the form that OpenAI's clients read."""

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
    # What a client sent may be in the message; half a surrogate pair could not be sent back.
    safe = message.encode("utf-8", "backslashreplace").decode("utf-8")
    return {"error": {"message": safe, "type": kind, "param": param, "code": code}}


def too_many(what: str, found: int, bound: int, *, param: str, status: int = 413) -> None:
    """Refuse `found` where it is more than `bound`, with a message that names both."""
    if found > bound:
        raise Refused(
            status, f"{what}: {found:,}, and at most {bound:,} are taken.", code="too_large", param=param
        )


def whole_unicode(text: str) -> str:
    """The text, if it can be written as UTF-8; raises ValueError, for pydantic's validators, if it cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"it is not Unicode text: half a surrogate pair at character {error.start}"
        ) from error
    return text
