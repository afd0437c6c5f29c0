"""A process whose console nobody reads any more goes on."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import sys
from prefect.logging.configuration import setup_logging
from prefect.logging import get_logger
from flows.prefect_flows.broken_pipe import survive_without_reader
setup_logging()
if {survives}:
    survive_without_reader()
sys.stdin.readline()
get_logger("tests").warning("one")
get_logger("tests").warning("two")
print("three", flush=True)
print("four", file=sys.stderr, flush=True)
open({path!r}, "w").write("went on")
"""


@pytest.mark.parametrize("survives", [True, False])
def test_the_log_of_a_flow_run_outlives_its_reader(tmp_path, survives):
    code = CODE.format(survives=survives, path=str(tmp_path / "end"))
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    process.stdout.close()  # as when the worker is killed
    process.stdin.write(b"\n")
    process.stdin.close()
    process.wait(60)
    assert (tmp_path / "end").exists() == survives
