"""How a job ends: a summary, one clear line for what the user can mend, or a traceback for a fault."""

import os
import signal
import subprocess
import sys

import pytest
import ray

from flows.jobs import runner
from flows.reporting import job_output
from flows.settings import Pretrain
from storage_schema.errors import UserError


def end(monkeypatch, capsys, run, config="{}"):
    monkeypatch.setattr(sys, "argv", ["job", "--config", config])
    code = 0
    try:
        runner.main(Pretrain, run)
    except SystemExit as stopped:
        code = stopped.code
    return code, capsys.readouterr().out.strip().splitlines()[-1]


def fail(error):
    def run(settings):
        raise error

    return run


def test_success_is_a_summary(monkeypatch, capsys):
    code, line = end(monkeypatch, capsys, lambda settings: {"name": settings.name}, '{"name": "a"}')
    assert code == 0
    assert job_output.read(line) == ("summary", {"name": "a"})


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('{"steps": 0}', "steps: Input should be greater than or equal to 1 (got 0)"),
        ('{"steps": 1}', "n is 3; it must be 4"),
    ],
)
def test_what_the_user_can_mend_is_one_line(monkeypatch, capsys, config, said):
    code, line = end(monkeypatch, capsys, fail(UserError("n is 3;\n it must be 4")), config)
    assert (code, line) == (2, f"error: {said}")


def test_a_fault_keeps_its_traceback(monkeypatch, capsys):
    with pytest.raises(ZeroDivisionError):
        end(monkeypatch, capsys, fail(ZeroDivisionError()))


STUB = """
import signal, time, ray
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores it, and so its processes
from flows.cluster import session
from flows.jobs import runner
from flows.settings import Settings

def run(settings):
    session.require_workers(1, use_gpu=False)
    try:
        print("begun", flush=True)
        ray.get(ray.remote(lambda: time.sleep(60)).remote())
    finally:
        print("cleaned up", flush=True)

runner.main(Settings, run)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_job_that_is_stopped_cleans_up_and_says_so(ray_cluster, number):
    job = subprocess.Popen(
        [sys.executable, "-c", STUB],
        env=os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert job.stdout.readline() == "begun\n"
    job.send_signal(number)
    said, errors = job.communicate(timeout=60)
    assert (job.returncode, said.splitlines()) == (130, ["cleaned up", runner.STOPPED]), errors
    assert "***" not in errors and "Traceback" not in errors
