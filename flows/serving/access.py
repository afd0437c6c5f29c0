"""Who may use the service: the token, the page's cookie, and the names under which the service may be called."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import secrets
import socket
from pathlib import Path

from storage_schema.errors import UserError
from storage_schema.layout import home

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
SHORTEST_TOKEN = 16


def default_token_file() -> Path:
    """The file with the token, unless another one is named."""
    return home() / "served" / ".token"


def read_token(path: str | Path | None = None) -> str:
    """The token in `path`. A missing file is made, with a new token and mode 0600.

    Raises ValueError if other users can read the file, or if its token is too short to be a secret.
    """
    path = Path(path).expanduser() if path else default_token_file()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _read(path)
    token = secrets.token_urlsafe(32)
    with os.fdopen(descriptor, "w") as file:
        file.write(token + "\n")
    return token


def _read(path: Path) -> str:
    state = path.stat()
    if state.st_mode & 0o077 or state.st_uid != os.getuid():
        raise UserError(
            f"the token file {path} can be read by others. Run: chmod 600 {path}, or name another."
        )
    token = path.read_text("utf-8").strip()
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(
            f"the token file {path} holds no token: one line of {SHORTEST_TOKEN} ASCII characters or more. "
            "Delete it, and a new one is made."
        )
    return token


class Access:
    """Checks what a request must bring: our name as its host, and the token or the page's cookie.

    Args:
        host: the service listens on it, and answers to this name and the loopback names only.
        port: part of the cookie's name, since a browser sends cookies to every port of a host.
    """

    def __init__(self, token: str, *, host: str = "127.0.0.1", port: int = 8300):
        self._token, self.host, self.port = token.encode(), host, port
        self.cookie_name = f"soe_serve_{port}"
        # The cookie is not the token: a program that reads the browser's cookies cannot use the API.
        self.cookie_value = hmac.new(self._token, b"the page's cookie", hashlib.sha256).hexdigest()
        self._everywhere = host in ("0.0.0.0", "::", "")
        own = {socket.gethostname().lower(), socket.getfqdn().lower()} if self._everywhere else {host.lower()}
        self._names = LOOPBACK | own

    def is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token)

    def is_bearer(self, header: str) -> bool:
        """Whether an Authorization header is ``Bearer <token>``."""
        kind, _, given = header.partition(" ")
        return kind.lower() == "bearer" and self.is_token(given.strip())

    def is_cookie(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self.cookie_value.encode())

    def is_our_name(self, header: str) -> bool:
        """Whether a Host header names this service. Another name that resolves to this machine is refused."""
        name = _host(header)
        return name in self._names or (self._everywhere and _is_address(name))


def _host(header: str) -> str:
    """The name in a Host header, without port and brackets, in lower case."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower()


def _is_address(name: str) -> bool:
    """Whether the name is an IP address: no name server can lead that elsewhere."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
