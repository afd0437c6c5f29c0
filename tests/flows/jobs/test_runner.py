"""How a job ends: one clear line for what the user can mend, a traceback for a fault."""

import errno
import json
import os
import subprocess
import sys

import pyarrow as pa
import pytest

from flows.cli import main as cli
from flows.cli import plan
from flows.cluster import session
from flows.errors import user_error
from flows.jobs import runner
from flows.local_stack import processes
from flows.prefect_flows.ray_job_client import JobError
from flows.settings import Pretrain
from storage_schema.errors import UserError
from storage_schema.manifest import StoreError
from tests.flows.sockets import LOOPBACK, listening


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
    assert json.loads(line.removeprefix(runner.SUMMARY_PREFIX)) == {"name": "a"}


def test_a_setting_out_of_bounds_is_named(monkeypatch, capsys):
    code, line = end(monkeypatch, capsys, lambda settings: {}, '{"steps": 0}')
    assert code == 2 and line.startswith("error: steps: Input should be greater than or equal to 1 (got 0")
    code, line = end(monkeypatch, capsys, lambda settings: {}, '{"stepz": 1}')
    assert code == 2 and "stepz" in line


@pytest.mark.parametrize("kind", [UserError, StoreError, JobError])
def test_user_errors_are_one_line(monkeypatch, capsys, kind):
    code, line = end(monkeypatch, capsys, fail(kind("n is 3;\n it must be 4")))
    assert (code, line) == (2, "error: n is 3; it must be 4")


def test_a_full_disk_is_one_line(monkeypatch, capsys):
    full = OSError(errno.ENOSPC, "No space left on device", "/data/x")
    code, line = end(monkeypatch, capsys, fail(full))
    assert code == 2 and "no space left on the disk of /data/x" in line


FAULTS = [
    ZeroDivisionError(),
    ValueError("operands could not be broadcast together with shapes (3,) (4,)"),
    pa.ArrowInvalid("Column 1 named b expected length 3 but got length 4"),
    json.JSONDecodeError("Expecting value", "", 0),
    UnicodeDecodeError("utf-8", b"x", 0, 1, "invalid start byte"),
    FileNotFoundError(errno.ENOENT, "No such file or directory", "/x/part-0001"),
]


@pytest.mark.parametrize("error", FAULTS, ids=lambda error: type(error).__name__)
def test_faults_keep_their_traceback(monkeypatch, capsys, error):
    """Of a library's ValueError the text alone says nothing to the user, and nothing of where it came from."""
    with pytest.raises(type(error)):
        end(monkeypatch, capsys, fail(error))
    monkeypatch.setattr(plan, "main", fail(error))
    with pytest.raises(type(error)):
        cli.main(["plan"])


def test_the_command_says_a_user_error_in_one_line_on_stderr(monkeypatch, capsys):
    monkeypatch.setattr(plan, "main", fail(UserError("n is 3;\n it must be 4")))
    assert cli.main(["plan"]) == 1
    assert capsys.readouterr() == ("", "error: n is 3; it must be 4\n")


def test_errors_raised_in_the_cluster_are_found(ray_cluster):
    import ray

    @ray.remote
    def task():
        raise UserError("the passage 7 is empty")

    @ray.remote
    def fault():
        raise ValueError("operands could not be broadcast")

    with pytest.raises(UserError) as raised:
        ray.get(task.remote())
    assert user_error(raised.value) == "the passage 7 is empty"
    with pytest.raises(ValueError) as raised:
        ray.get(fault.remote())
    assert user_error(raised.value) is None


def test_more_workers_than_the_cluster_has_are_refused_at_once(ray_cluster):
    session.require_workers(4, use_gpu=False)
    with pytest.raises(ValueError, match="5 workers need 5 CPUs; the Ray cluster has 4: lower num_workers"):
        session.require_workers(5, use_gpu=False)
    with pytest.raises(
        ValueError, match="4 workers need 4 CPUs and one for their data; the Ray cluster has 4"
    ):
        session.require_workers(4, use_gpu=False, with_data=True)
    with pytest.raises(ValueError, match="1 workers need 1 GPUs; the Ray cluster has 0: set use_gpu=false"):
        session.require_workers(1, use_gpu=True)


ASKS_IN_A_WORKER = """
from flows.cluster import session
session.connect()
import ray
from ray.util.state import get_actor

@ray.remote(num_cpus=0)
class Asks:
    def state(self):
        return get_actor(ray.get_runtime_context().get_actor_id(), timeout=10).state

print("up", ray.get(Asks.remote().state.remote(), timeout=30))
input()
"""


def test_a_cluster_of_ones_own_listens_on_loopback_only_and_its_workers_can_ask_for_an_actor():
    mark = f"SOE_TEST_OF_CONNECT={os.getpid()}"
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    job = subprocess.Popen(
        [sys.executable, "-c", ASKS_IN_A_WORKER],
        env=clean | dict([mark.split("=")]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert job.stdout.readline() == "up ALIVE\n"
        addresses = {address for address, _ in listening(set(processes.carrying(mark)))}
        assert addresses and addresses <= LOOPBACK
    finally:
        job.communicate("\n", timeout=60)
