"""How a job ends: one clear line for what the user can mend, a traceback for a fault."""

import errno
import json
import os
import subprocess
import sys

import pytest

from flows import processes
from flows.jobs import runner
from flows.settings import Pretrain
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


def test_user_errors_and_full_disks_are_one_line(monkeypatch, capsys):
    code, line = end(monkeypatch, capsys, fail(ValueError("n is 3;\n it must be 4")))
    assert (code, line) == (2, "error: n is 3; it must be 4")
    full = OSError(errno.ENOSPC, "No space left on device", "/data/x")
    code, line = end(monkeypatch, capsys, fail(full))
    assert code == 2 and "no space left on the disk of /data/x" in line


def test_faults_keep_their_traceback(monkeypatch, capsys):
    with pytest.raises(ZeroDivisionError):
        end(monkeypatch, capsys, fail(ZeroDivisionError()))


def test_errors_raised_in_the_cluster_are_found(ray_cluster):
    import ray

    @ray.remote
    def task():
        raise ValueError("the passage 7 is empty")

    with pytest.raises(ValueError) as raised:
        ray.get(task.remote())
    assert runner.user_error(raised.value) == "the passage 7 is empty"


def test_more_workers_than_the_cluster_has_are_refused_at_once(ray_cluster):
    runner.require_workers(4, use_gpu=False)
    with pytest.raises(ValueError, match="5 workers need 5 CPUs; the Ray cluster has 4: lower num_workers"):
        runner.require_workers(5, use_gpu=False)
    with pytest.raises(
        ValueError, match="4 workers need 4 CPUs and one for their data; the Ray cluster has 4"
    ):
        runner.require_workers(4, use_gpu=False, with_data=True)
    with pytest.raises(ValueError, match="1 workers need 1 GPUs; the Ray cluster has 0: set use_gpu=false"):
        runner.require_workers(1, use_gpu=True)


def test_a_cluster_of_ones_own_listens_on_loopback_only():
    mark = f"SOE_TEST_OF_CONNECT={os.getpid()}"
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    job = subprocess.Popen(
        [sys.executable, "-c", "from flows.jobs import runner; runner.connect(); print('up'); input()"],
        env=clean | dict([mark.split("=")]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert job.stdout.readline() == "up\n"
        addresses = {address for address, _ in listening(set(processes.carrying(mark)))}
        assert addresses and addresses <= LOOPBACK
    finally:
        job.communicate("\n", timeout=60)
