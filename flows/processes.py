"""The processes of a local stack: starting them apart from the terminal, finding them again, stopping them.

A component is started as the leader of its own session, with a mark in its environment. Its members are the
processes of that session, their descendants, and whatever carries the mark (Ray starts job drivers in new
sessions, and its workers overwrite the memory in which the kernel shows their environment: no single sign
finds them all). Linux only: everything is read from ``/proc``.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

MARK = "SOE_STACK"
"""The environment variable that every process of a stack inherits: ``<stack's id>:<component>``."""


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process, told from a later one that was given the same number by the time it started."""

    pid: int
    started: int
    """Clock ticks since the machine started."""

    @property
    def alive(self) -> bool:
        found = _read_stat(self.pid)
        return found is not None and found.started == self.started and not found.ended


@dataclass(frozen=True)
class _Stat:
    pid: int
    parent: int
    session: int
    started: int
    ended: bool


def start(command: list[str], *, environment: dict[str, str], log: Path, folder: Path) -> Process:
    """Start `command` in a session of its own; its output is appended to `log` (mode 0600)."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        child = subprocess.Popen(
            command,
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    finally:
        os.close(descriptor)
    found = _read_stat(child.pid)
    return Process(pid=child.pid, started=found.started if found else 0)


def members(leaders: Iterable[Process], mark: str) -> set[int]:
    """Numbers of the living processes in the sessions of the `leaders` (which may have ended), of those whose
    mark begins with `mark`, and of the descendants of both. The calling process is never among them.
    """
    table = {stat.pid: stat for stat in _all() if not stat.ended}
    ours = {p.pid for p in leaders if p.pid not in table or table[p.pid].started == p.started}
    found = {pid for pid, stat in table.items() if stat.session in ours}
    found |= carrying(f"{MARK}={mark}") & table.keys()
    grown = True
    while grown:
        below = {pid for pid, stat in table.items() if stat.parent in found} - found
        found |= below
        grown = bool(below)
    return found - {os.getpid()}


def carrying(variable: str) -> set[int]:
    """Numbers of the processes with an environment variable that begins so: ``NAME=value``."""
    sign = b"\0" + variable.encode()
    return {pid for pid in _numbers() if sign in b"\0" + _environment(pid)}


def stop(find: Callable[[], set[int]], *, patience: float) -> set[int]:
    """Ask the processes that `find` names to end, and after `patience` seconds make them.

    Returns the numbers of those that are still there two seconds after SIGKILL (none, short of a hung disk).
    """
    asked: set[int] = set()
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        left = find()
        if not left:
            return set()
        _signal(left - asked, signal.SIGTERM)
        asked |= left
        time.sleep(0.1)
    deadline = time.monotonic() + 2
    while (left := find()) and time.monotonic() < deadline:
        _signal(left, signal.SIGKILL)
        time.sleep(0.1)
    return left


def free_port() -> int:
    """A port of the loopback interface that is free now, and that the kernel gives to nobody who asks for any.

    A port of its own range (32768 to 60999, unless set) may be some connection's before a server listens there.
    """
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    below = range(max(1024, first - 12_000), first)
    if not below:
        raise OSError(
            "the kernel's own ports (net.ipv4.ip_local_port_range) leave none below them; choose ports."
        )
    for port in random.SystemRandom().sample(below, len(below)):
        if port_is_free(port):
            return port
    raise OSError(f"no port from {below[0]} to {below[-1]} is free.")


def port_is_free(port: int) -> bool:
    """Whether a server could listen on this port of the loopback interface now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def _all() -> list[_Stat]:
    return [stat for pid in _numbers() if (stat := _read_stat(pid))]


def _numbers() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _read_stat(pid: int) -> _Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the name, in parentheses, may hold anything
    return _Stat(
        pid=pid,
        parent=int(fields[1]),
        session=int(fields[3]),
        started=int(fields[19]),
        ended=fields[0] in "ZX",
    )


def _environment(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""
