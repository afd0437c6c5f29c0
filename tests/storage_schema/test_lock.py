from __future__ import annotations

import errno
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from storage_schema.lock import in_turn, only_writer
from storage_schema.manifest import StoreError

HOLD = """
import sys
from storage_schema.lock import only_writer
with only_writer(sys.argv[1]):
    print("held", flush=True)
    input()
"""


def test_a_second_writer_is_refused_and_a_killed_one_leaves_nothing(tmp_path):
    folder = tmp_path / "store"
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout.readline() == "held\n"
    with pytest.raises(StoreError, match=f"store is being written by process {first.pid} on .*another name"):
        with only_writer(folder):
            pass
    first.send_signal(signal.SIGKILL)
    first.wait()
    with only_writer(folder):
        pass
    with only_writer(folder):
        pass


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    for lock in (only_writer, in_turn):
        with pytest.raises(StoreError, match="store cannot be locked: Function not impl.*-o flock.*SOE_HOME"):
            with lock(tmp_path / "store"):
                pass


def test_those_who_write_one_folder_take_turns(tmp_path):
    """Each finds the folder as the one before left it, though the lock comes and goes with it."""
    inside, most = 0, 0

    def write(number):
        nonlocal inside, most
        with in_turn(tmp_path / "a"):
            inside += 1
            most = max(most, inside)
            time.sleep(0.002)
            inside -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(40)))
    assert most == 1 and not list(tmp_path.iterdir())
