"""Which sockets processes hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psutil

LOOPBACK = {"127.0.0.1", "::ffff:127.0.0.1", "::1"}


def listening(pids: set[int]) -> set[tuple[str, int]]:
    """(address, port) of every TCP socket these processes listen on."""
    return {tuple(one.laddr) for one in _sockets(pids, "tcp") if one.status == psutil.CONN_LISTEN}


def datagrams(pids: set[int]) -> set[tuple[str, int]]:
    """(address, port) of every UDP socket of theirs."""
    return {tuple(one.laddr) for one in _sockets(pids, "udp")}


def peers(pids: set[int]) -> set[str]:
    """The addresses that their TCP connections lead to, begun ones too."""
    return {one.raddr.ip for one in _sockets(pids, "tcp") if one.raddr}


def _sockets(pids: set[int], kind: str) -> Iterator[Any]:
    for pid in pids:
        try:
            yield from psutil.Process(pid).net_connections(kind)
        except psutil.NoSuchProcess:
            continue
