"""What the tests of pretraining share: a run of a second, and the job as a process that can be killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import ray

from flows.cluster import session
from flows.settings import Pretrain
from tests.soe_model.training.test_trainer import ADAM

SETTINGS = dict(
    store="toy", preset="tiny", steps=60, warmup_steps=60, batch_size=8, sequence_length=16, mixtures_per_step=4,
    support_size=2, num_experts=3, checkpoint_every=20, window_steps=7, epsilon=ADAM.epsilon,
)  # fmt: skip
"""Of 60 steps the first seven are read by the worker itself, the others come through Ray Data."""

LONG = dict(steps=160, checkpoint_every=40)
"""Enough steps to be killed in their middle."""

STATE = "checkpoint_manager_snapshot.json"


def losses(home, name):
    lines = (home / "runs" / name / "log.jsonl").read_text().splitlines()
    return {line["step"]: line["loss"] for line in map(json.loads, lines)}


class Job:
    """The job as a process of its own, on the session's cluster or on one that it starts."""

    def __init__(self, name, *, own_cluster=False, address=None, code="", variables=None, **changes):
        self.settings = Pretrain(name=name, **SETTINGS | changes)
        self.log = Path(os.environ["SOE_HOME"]) / f"{name}.log"
        environment = os.environ | (variables or {})
        if address:  # of several nodes
            environment.pop(session.PREEMPTION_WATCHER, None)
        if not own_cluster:
            environment["RAY_ADDRESS"] = address or ray.get_runtime_context().gcs_address
        main = f"{code}\nfrom flows.jobs import pretrain_soe as p, runner\nrunner.main(p.Pretrain, p.run)"
        self.process = subprocess.Popen(
            [sys.executable, "-c", main, "--config", self.settings.model_dump_json(exclude_unset=True)],
            env=environment,
            stdout=open(self.log, "w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait_for(self, reached):
        deadline = time.monotonic() + 240
        while not reached():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.01)

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def end(self, seconds=400):
        """The exit code and all that was printed."""
        return self.process.wait(timeout=seconds), self.log.read_text()


def registered(run, step):
    """Whether Ray has registered the checkpoint of that step (or a later one)."""
    path = run / STATE
    with contextlib.suppress(OSError, ValueError):
        names = [entry["checkpoint_dir_name"] for entry in json.loads(path.read_text())["checkpoint_results"]]
        return any(int(name.split("-")[1]) >= step for name in names)
    return False


def newest(run):
    return json.loads((run / STATE).read_text())["latest_checkpoint_result"]["checkpoint_dir_name"]
