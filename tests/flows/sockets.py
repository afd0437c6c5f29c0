"""Which sockets processes hold."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
"""127.0.0.1 and ::1 as /proc writes them."""
_LISTENS = "0A"


def listening(pids: set[int]) -> set[tuple[str, int]]:
    """(address as /proc writes it, port) of every TCP socket these processes listen on."""
    return {(address, port) for address, port, _, state in _sockets(pids, "tcp") if state == _LISTENS}


def datagrams(pids: set[int]) -> set[tuple[str, int]]:
    """(address, port) of every UDP socket of theirs."""
    return {(address, port) for address, port, _, _ in _sockets(pids, "udp")}


def peers(pids: set[int]) -> set[str]:
    """The addresses that their TCP connections lead to, begun ones too."""
    return {peer for _, _, peer, state in _sockets(pids, "tcp") if state != _LISTENS}


def _sockets(pids: set[int], protocol: str) -> Iterator[tuple[str, int, str, str]]:
    """(address, port, the peer's address, state) of each socket that one of these processes holds."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                target = os.readlink(link)
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    for table in (f"/proc/net/{protocol}", f"/proc/net/{protocol}6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in inodes:
                address, port = fields[1].split(":")
                yield address, int(port, 16), fields[2].partition(":")[0], fields[3]
