from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from storage_schema.lock import only_writer
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
