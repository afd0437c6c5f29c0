"""What `soe serve` does: open the soup, listen, print the addresses, and stop cleanly."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import sys
from typing import Any

import uvicorn

from flows.serving.access import LOOPBACK, Access, default_token_file, read_token
from flows.serving.app import create_app
from flows.serving.limits import Limits
from flows.serving.specialist_cache import Specialists
from flows.specialists.soups import soup_to_read
from pipeline.cores import available_cores, compute_on
from soe_model.files.soup import SoupOfExperts
from soe_model.specialists.blending import BLENDED
from storage_schema.errors import UserError

STOPPING_SECONDS = 3
"""How long running answers may take when the service is stopped."""


def main(
    soup: str,
    *,
    host: str,
    port: int,
    token_file: str | None = None,
    cache: int = 4,
    max_queue: int = 64,
    method: str = BLENDED,
) -> int:
    """Serve until SIGINT or SIGTERM; returns 0.

    Args:
        soup: name or path.
        host: the address to listen on.
        port: 0: any that is free.
        token_file: where the token lies; None: the default place.
        cache: models kept in memory.
        max_queue: requests that may wait.
        method: of making specialists, as :class:`Specialists` takes it.

    Raises:
        ValueError: a setting is out of its bounds, the port is taken, the soup does not verify, or other users can
            read the token file.
    """
    if max_queue < 1:
        raise UserError(f"--max-queue is {max_queue}; it must be at least 1.")
    limits = Limits()
    listening = listen(host, port)
    try:
        port = listening.getsockname()[1]
        token = read_token(token_file)
        print(f"Opening {soup} …", flush=True)
        compute_on(available_cores())
        opened = SoupOfExperts.open(soup_to_read(soup))
        specialists = Specialists(opened, cache=cache, limits=limits, method=method)
        specialists.warm_up()
        access = Access(token, host=host, port=port)
        app = create_app(specialists, access, max_queue=max_queue)
        _say(host, port, token, token_file)
        _serve(app, listening, limits)
    finally:
        listening.close()
    print("Stopped.", flush=True)
    return 0


def listen(host: str, port: int) -> socket.socket:
    """A socket on the port. Raises ValueError if the port is taken or forbidden, or the host is not this machine."""
    if not 0 <= port <= 65535:
        raise UserError(f"--port is {port}; it must be 0 (any) to 65535.")
    try:
        family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise UserError(f"--host {host!r} is not known: {error}.") from error
    # asyncio sends small pieces at once (TCP_NODELAY) only if the socket names its protocol. Without that the second of
    # two pieces waits 40 ms for the client's acknowledgement.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)  # raises if another program listens on the port
    except OSError as error:
        listening.close()
        raise UserError(
            f"port {port} of {host} cannot be listened on: {os.strerror(error.errno or 0)}. Choose another with --port."
        ) from error
    return listening


def _say(host: str, port: int, token: str, token_file: str | None) -> None:
    named = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host
    named = f"[{named}]" if ":" in named else named
    if not _is_loopback(host):
        print(
            f"warning: listening on {host}: whoever reaches this machine can try the token, and what is sent over "
            "the network is not encrypted. An SSH tunnel to 127.0.0.1 is safer.",
            file=sys.stderr,
            flush=True,
        )
    file = token_file or default_token_file()
    if sys.stdout.isatty():
        print(f"The page:  http://{named}:{port}/?token={token}")
    else:  # a log file, which others may read
        print(f"The page:  http://{named}:{port}/ (it asks for the token, which is in {file})")
    print(f"OpenAI:    base_url http://{named}:{port}/v1, api_key in {file}")
    print("Ctrl-C stops it.", flush=True)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() in LOOPBACK


def _serve(app: Any, listening: socket.socket, limits: Limits) -> None:
    config = uvicorn.Config(
        app,
        # The access log would contain the token, which is part of the page's address.
        access_log=False,
        log_level="warning",
        limit_concurrency=limits.connections,
        timeout_graceful_shutdown=STOPPING_SECONDS,
        proxy_headers=False,
        server_header=False,
        ws="none",
    )
    # uvicorn raises the signal again after it has stopped; for us that is a normal end.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
