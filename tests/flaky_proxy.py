"""An HTTP proxy on loopback that stands between a client and an S3 server, and fails as it is told."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

BUSY = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
CONFLICT = b"<Error><Code>ConditionalRequestConflict</Code><Message>Try again.</Message></Error>"
OURS = {"content-length", "transfer-encoding", "connection", "date", "server"}
"""Headers that the proxy's own take the place of."""


@dataclass(kw_only=True)
class Proxy:
    """What the proxy saw, and what it does to requests."""

    url: str = ""
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path and range, in the order in which they came."""
    rule: Callable[[str, str, str, int], str | None] = lambda method, path, where, seen: None
    """Method, path, range, and how often just that was asked for before → what goes wrong: ``busy`` (503),
    ``conflict`` (409), ``reset``, ``lost`` (it arrives, the answer does not), ``cut`` (half of the body), ``silent``
    (no answer), ``stalled`` (half of the body, and no end), or None."""
    failed: list[str] = field(default_factory=list)
    """What went wrong."""
    sent: int = 0
    """Bytes of bodies."""
    latency: float = 0.0
    """Seconds added to every request."""

    def of(self, name: str, method: str = "GET") -> int:
        """Requests for paths that hold `name`."""
        return sum(m == method and name in unquote(path.partition("?")[0]) for m, path, _ in self.requests)


@contextmanager
def proxy_to(server: str):
    """A running :class:`Proxy` to the server of this URL."""
    served = _Server(server)
    threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield served.proxy
    served.shutdown()
    served.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, behind: str):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind, self.lock = urlsplit(behind).netloc, threading.Lock()
        self.proxy = Proxy(url="http://{}:{}".format(*self.server_address))

    def handle_error(self, *_):
        pass


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def fail_or_forward(self):
        self.received = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        done = self.what_goes_wrong()
        if done == "reset":
            self.reset()
        elif done == "silent":
            self.wait()
        elif done == "busy":
            self.answer(503, [], BUSY, BUSY)
        elif done == "conflict":
            self.answer(409, [], CONFLICT, CONFLICT)
        else:
            self.forward(done)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = fail_or_forward

    def what_goes_wrong(self) -> str | None:
        """What the rule does to this request; both are written down."""
        proxy, where = self.server.proxy, self.headers.get("Range", "")
        with self.server.lock:
            seen = proxy.requests.count((self.command, self.path, where))
            proxy.requests.append((self.command, self.path, where))
        time.sleep(proxy.latency)
        done = proxy.rule(self.command, unquote(self.path), where, seen)
        with self.server.lock:
            proxy.failed += [done] if done else []
        return done

    def forward(self, done: str | None):
        """Give the server's answer, or half of its body."""
        behind = http.client.HTTPConnection(self.server.behind, timeout=10)
        behind.request(self.command, self.path, self.received, dict(self.headers))
        response = behind.getresponse()
        body = response.read()
        behind.close()
        if done == "lost":
            return self.reset()
        sent = body[: len(body) // 2] if done in ("cut", "stalled") else body
        with self.server.lock:
            self.server.proxy.sent += len(sent)
        self.answer(response.status, response.getheaders(), body, sent)
        self.close_connection |= done == "cut"
        if done == "stalled":
            self.wait()

    def reset(self):
        """Break the connection off."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def wait(self):
        """Until the client hangs up."""
        while self.connection.recv(1024):
            pass
        self.close_connection = True

    def answer(self, status: int, headers: list[tuple[str, str]], body: bytes, sent: bytes):
        """`sent` of the body; the length is that of the whole, and for HEAD the one that the server gave."""
        self.send_response(status)
        length = dict((name.lower(), value) for name, value in headers).get("content-length")
        for name, value in headers:
            if name.lower() not in OURS:
                self.send_header(name, value)
        self.send_header("Content-Length", length if self.command == "HEAD" and length else str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(sent)

    def log_message(self, *_):
        pass
