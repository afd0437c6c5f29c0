"""Check each request before the application sees it (Host, Origin, token, size), and set each answer's headers."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flows.serving.access import Access
from flows.serving.limits import Limits, Refused

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
OPEN = ("/", "/healthz")
"""No token is needed here; ``/`` checks its own cookie or token."""
STATIC = "/static/"
READING = ("GET", "HEAD", "OPTIONS")


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, *, access: Access, limits: Limits):
        self.app, self.access, self.limits = app, access, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # the service has no WebSocket
        request, answer = HTTPConnection(scope), _with_headers(send)
        try:
            self._check_origin(request.headers)
            self._check_token(scope["path"], request)
            if scope["method"] not in READING:
                receive = await self._whole_body(request.headers, receive)
        except Refused as refused:
            response = JSONResponse(refused.body(), refused.status, headers=refused.headers)
            await response(scope, receive, answer)
            return
        await self.app(scope, receive, answer)

    def _check_origin(self, headers: Headers) -> None:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self.access.is_our_name(hosts[0]):
            named = hosts[0][:80] if hosts else "missing"
            raise Refused(
                421,
                f"The Host header is {named!r}; this service answers to its own name only. "
                f"Use http://127.0.0.1:{self.access.port}, or start it with --host NAME.",
                code="unknown_host",
            )
        origin = headers.get("origin")
        if origin is not None and origin != f"http://{hosts[0]}":
            raise Refused(403, "Pages of other origins may not use this service.", code="foreign_origin")

    def _check_token(self, path: str, request: HTTPConnection) -> None:
        if path in OPEN or path.startswith(STATIC):
            return
        given = request.headers.get("authorization")
        cookie = request.cookies.get(self.access.cookie_name, "")
        if given is not None and self.access.is_bearer(given):
            return
        if given is None and not path.startswith("/v1/") and self.access.is_cookie(cookie):
            return
        said = "The token is wrong." if given is not None else "There is no token."
        raise Refused(
            401,
            f"{said} Send 'Authorization: Bearer TOKEN' (api_key of OpenAI's client); `soe serve` printed where "
            "the token lies.",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )

    async def _whole_body(self, headers: Headers, receive: Receive) -> Receive:
        """Read the body within the limits of size and time; returns a `receive` that gives it again."""
        said = headers.get("content-length", "0")
        if not said.isdigit():
            raise Refused(400, f"The Content-Length is {said[:40]!r}; it must be a number of bytes.")
        self._check_size(int(said))
        parts: list[bytes] = []
        size, more = 0, True
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return _once(message, receive)
                    size += len(message.get("body", b""))
                    self._check_size(size)
                    parts.append(message.get("body", b""))
                    more = message.get("more_body", False)
        except TimeoutError:
            seconds = self.limits.body_seconds
            raise Refused(408, f"The request's body did not arrive within {seconds:g} seconds.") from None
        return _once({"type": "http.request", "body": b"".join(parts), "more_body": False}, receive)

    def _check_size(self, size: int) -> None:
        if size > self.limits.body_bytes:
            raise Refused(
                413,
                f"The request has {size:,} bytes or more; at most {self.limits.body_bytes:,} are taken. "
                "Give fewer texts: a few hundred passages are all that is read of them.",
                code="too_large",
            )


def _once(message: Message, receive: Receive) -> Receive:
    """A `receive` that gives `message` first, then what `receive` gives."""
    left = [message]

    async def again() -> Message:
        return left.pop() if left else await receive()

    return again


def _with_headers(send: Send) -> Send:
    async def answer(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return answer
