"""Finding and stopping the processes of a component, and no others."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows import processes

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


def test_a_free_port_is_none_that_the_kernel_gives_to_connections():
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert all(1024 <= processes.free_port() < first for _ in range(50))
