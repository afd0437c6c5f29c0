"""What the tests look at in a running stack: its processes, ports, logs and secrets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

from flows.local_stack import processes
from tests.flows.sockets import listening


def members(place) -> set[int]:
    known = place.stack()
    return processes.members(known.processes.values(), known.mark())


def secrets(place) -> tuple[str, str]:
    folder = place.folder / "soe" / "stack"
    return (folder / "prefect-password").read_text(), (folder / "ray-token").read_text()


def logs(place) -> Path:
    return place.folder / "soe" / "stack" / "ray" / "session_latest" / "logs"


def command_line(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.NoSuchProcess:  # it has ended
        return ""


def command_lines(place) -> list[str]:
    return [command_line(pid) for pid in members(place)]


@dataclass(frozen=True)
class Port:
    number: int
    address: str
    owner: str
    """The command line of the process that listens."""


def listeners(place) -> list[Port]:
    """What the stack listens on now."""
    found = []
    for pid in members(place):
        owner = command_line(pid).strip()
        found += [Port(number, address, owner) for address, number in listening({pid})]
    return sorted(found, key=lambda port: port.number)
