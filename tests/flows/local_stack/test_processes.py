"""Finding and stopping the processes of a component, and no others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flows.local_stack import processes

ORPHAN = """
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env={})
print("started", flush=True)
if sys.argv[1] == "die":
    os._exit(0)
time.sleep(60)
"""


@pytest.mark.parametrize("leader", ["die", "live"])
def test_stop_finds_every_process_and_no_other(tmp_path, leader):
    mark = f"{tmp_path}:x"  # no other test's that runs beside this one
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    begun = processes.start(
        [sys.executable, "-c", ORPHAN, leader],
        environment={**os.environ, processes.MARK: mark},
        log=tmp_path / "log",
        folder=tmp_path,
    )
    deadline = time.monotonic() + 20
    while "started" not in (tmp_path / "log").read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    find = lambda: processes.members([begun], mark)  # noqa: E731
    assert len(find()) == (2 if leader == "die" else 3)
    assert stranger.pid not in find()
    assert processes.stop(find, patience=5) == set()
    assert find() == set() and not begun.alive
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def left_of_a_session(tmp_path, *, folder, **variables) -> tuple[int, int]:
    """(number of a session whose leader has ended, the process that is left in it); it works in `folder`."""
    code = "import subprocess; print(subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL).pid)"
    leader = subprocess.Popen(
        [sys.executable, "-S", "-c", code],
        cwd=folder,
        env=variables,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    left = int(leader.communicate()[0])
    return leader.pid, left


@pytest.mark.parametrize("boot", ["", "now"])
def test_a_later_session_of_the_same_number_is_spared(tmp_path, boot):
    """The number was the component's; component and session are gone, and the number is a stranger's now."""
    session, stranger = left_of_a_session(tmp_path, folder="/")
    boot = boot and processes.boot_id()
    ours = processes.Process(pid=session, started=1, boot=boot, mark=f"{tmp_path}:x", folder=str(tmp_path))
    assert not ours.alive
    assert processes.members([ours], f"{tmp_path}:x") == set()
    os.kill(stranger, signal.SIGKILL)


@pytest.mark.parametrize("sign", ["mark", "folder"])
def test_what_is_left_of_our_session_is_found_by_mark_or_folder(tmp_path, sign):
    mark = f"{tmp_path}:x"
    session, left = left_of_a_session(
        tmp_path,
        folder=tmp_path if sign == "folder" else "/",
        **({processes.MARK: mark} if sign == "mark" else {}),
    )
    ours = processes.Process(pid=session, started=1, boot=processes.boot_id(), folder=str(tmp_path))
    assert processes.members([ours], mark) == {left}
    os.kill(left, signal.SIGKILL)


def test_after_a_reboot_nothing_is_taken_for_ours(tmp_path, monkeypatch):
    """Not even a process with the number and the ticks, or one that works in our folder in a session of the number."""
    stranger = processes.start(["sleep", "60"], environment={}, log=tmp_path / "log", folder=tmp_path)
    session, left = left_of_a_session(tmp_path, folder=tmp_path)
    leader = processes.Process(pid=session, started=1, boot=stranger.boot, folder=str(tmp_path))
    assert stranger.alive and processes.members([stranger, leader], "x:") == {stranger.pid, left}
    monkeypatch.setattr(processes, "boot_id", lambda: "a later one")
    assert not stranger.alive and processes.members([stranger, leader], "x:") == set()
    for pid in (stranger.pid, left):
        os.kill(pid, signal.SIGKILL)
    os.waitpid(stranger.pid, 0)


def test_a_process_is_itself_after_the_clock_was_set(tmp_path, monkeypatch):
    begun = processes.start(["sleep", "60"], environment={}, log=tmp_path / "log", folder=tmp_path)
    before = psutil.boot_time()
    for module in (psutil, psutil._psplatform):  # what the kernel says of the boot moves with the clock
        monkeypatch.setattr(module, "boot_time", lambda: before + 86_400.0)
    assert begun.alive
    os.kill(begun.pid, signal.SIGKILL)
    os.waitpid(begun.pid, 0)
    assert not begun.alive


def test_a_free_port_is_none_that_the_kernel_gives_to_connections():
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert all(1024 <= processes.free_port() < first for _ in range(50))


def test_no_two_processes_are_given_the_same_free_port(monkeypatch):
    script = "from flows.local_stack import processes; print(processes.free_port(), flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=-1, stdout=-1, text=True) as other:
        taken = int(other.stdout.readline())
        assert processes.port_is_free(taken)  # no server listens on it yet

        class Unlucky:
            def sample(self, population, k):
                return [taken, *(port for port in population if port != taken)]

        monkeypatch.setattr(processes.random, "SystemRandom", Unlucky)
        while_it_lives = processes.free_port()
        other.communicate("")
        afterwards = processes.free_port()
    assert while_it_lives != taken and afterwards == taken
