"""Start the processes of a local stack apart from the terminal, find them again, and stop them.

Each component leads a session of its own and has a mark in its environment. The processes of that session, their
descendants and every process with the mark belong to it. No single sign finds them all: Ray starts job drivers in new
sessions, and its workers overwrite the memory from which the kernel shows their environment.

Linux only: the boot's id, environments and the kernel's port range are read from ``/proc``; psutil has none of them
whole.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

MARK = "SOE_STACK"
"""The environment variable that every process of a stack inherits: ``<stack's id>:<component>``."""


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process. Its start time and the boot tell it from a later process with the same number."""

    pid: int
    started: int
    """In clock ticks since the machine started; setting the clock does not change it."""
    boot: str = ""
    """:func:`boot_id` when it was started; empty in state files of older versions."""
    mark: str = ""
    """The value of :data:`MARK` that it was started with."""
    folder: str = ""
    """The folder that it was started in."""

    @property
    def of_this_boot(self) -> bool:
        """Whether the machine has not restarted since. If it has, the number belongs to another process or to none."""
        return self.boot in ("", boot_id())

    @property
    def alive(self) -> bool:
        return self.of_this_boot and _started(self.pid) == self.started


@dataclass(frozen=True)
class _Row:
    """What the process table says about a process."""

    parent: int
    session: int


def start(command: list[str], *, environment: dict[str, str], log: Path, folder: Path) -> Process:
    """Start `command` in `folder` and a session of its own; its output is appended to `log` (mode 0600)."""
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
    return Process(
        pid=child.pid,
        started=_started(child.pid) or 0,
        boot=boot_id(),
        mark=environment.get(MARK, ""),
        folder=str(folder),
    )


def boot_id() -> str:
    """The kernel's id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def members(leaders: Iterable[Process], mark: str) -> set[int]:
    """The numbers of the living processes in the sessions of the `leaders`, of those whose mark begins with `mark`, and
    of the descendants of both. A leader may have ended; the calling process is left out.
    """
    table = _table()
    marked = carrying(f"{MARK}={mark}") & table.keys()
    found = set(marked)
    for leader in leaders:
        session = {pid for pid, row in table.items() if row.session == leader.pid}
        if leader.alive or (leader.pid not in table and _is_left_of(leader, session, marked)):
            found |= session
    grown = True
    while grown:
        below = {pid for pid, row in table.items() if row.parent in found} - found
        found |= below
        grown = bool(below)
    return found - {os.getpid()}


def _is_left_of(leader: Process, session: set[int], marked: set[int]) -> bool:
    """Whether this is still the session of the leader, which has ended, and not a later one with the same number. The
    kernel keeps the number while a process is in the session, so one process of ours in it is proof.
    """
    return leader.of_this_boot and (
        bool(session & marked) or any(_works_in(leader.folder, p) for p in session)
    )


def _works_in(folder: str, pid: int) -> bool:
    try:
        return bool(folder) and Path(psutil.Process(pid).cwd()).is_relative_to(Path(folder).resolve())
    except psutil.Error:
        return False


def carrying(variable: str) -> set[int]:
    """The numbers of the processes with an environment variable that begins with ``NAME=value``."""
    sign = b"\0" + variable.encode()
    return {pid for pid in psutil.pids() if sign in b"\0" + _environment(pid)}


def stop(find: Callable[[], set[int]], *, patience: float) -> set[int]:
    """Ask the processes that `find` names to end (SIGTERM); after `patience` seconds kill them.

    Returns the numbers of those that still run two seconds after SIGKILL: none, unless a disk hangs.
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
    """A free port of the loopback interface, outside the range from which the kernel takes ports for connections.

    Inside that range (32768 to 60999, unless set) a connection may take the port before a server listens on it.
    The port is this process's for as long as it lives: no other call of this function, in any process, returns it.
    """
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    below = range(max(1024, first - 12_000), first)
    if not below:
        raise OSError(
            "the kernel's own ports (net.ipv4.ip_local_port_range) leave none below them; choose ports."
        )
    for port in random.SystemRandom().sample(below, len(below)):
        kept = socket.socket(socket.AF_UNIX)
        try:
            kept.bind(f"\0soe-port-{port}")  # an abstract name: the kernel drops it with the process
        except OSError as error:
            kept.close()
            if error.errno != errno.EADDRINUSE:
                raise
            continue
        if port_is_free(port):
            _kept.append(kept)
            return port
        kept.close()
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


def _table() -> dict[int, _Row]:
    """The processes that have not ended."""
    table = {}
    for process in psutil.process_iter():
        try:
            with process.oneshot():
                if process.status() not in _ENDED:
                    table[process.pid] = _Row(process.ppid(), os.getsid(process.pid))
        except (psutil.Error, ProcessLookupError):  # it has just ended
            pass
    return table


_kept: list[socket.socket] = []
"""One socket for each port that :func:`free_port` returned."""

_ENDED = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


def _started(pid: int) -> int | None:
    """See :attr:`Process.started`; None if there is no such process, or it has ended."""
    try:
        process = psutil.Process(pid)
        if process.status() in _ENDED:
            return None
        # psutil adds the time of the boot, which moves when the clock is set.
        return round((process.create_time() - psutil.boot_time()) * os.sysconf("SC_CLK_TCK"))
    except psutil.Error:
        return None


def _environment(pid: int) -> bytes:
    """As the kernel shows it; psutil's reading ends at the first gap, and Ray's workers make gaps."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""
