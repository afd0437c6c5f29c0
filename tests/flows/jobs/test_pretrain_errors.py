"""What ends a pretraining run, and what it then says: NaN, memory, disk, GPUs, partitions that cannot be read."""

import json
import os
import shutil
import sys
import time
from collections import namedtuple

import pytest
import torch

from flows.jobs import pretrain_soe, runner
from flows.settings import Pretrain
from flows.training import resolve_run as run_plan
from storage_schema.domains import DomainStore, partition_path
from storage_schema.manifest import StoreError
from tests.flows.jobs.pretraining import SETTINGS, STATE, Job
from tests.toy_store import make_store


def test_a_loss_that_is_not_finite_ends_the_run_at_once(home):
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"has diverged: step \d+: .* mixture 0 of domains \d \(") as raised:
        pretrain_soe.run(Pretrain(name="nan", **SETTINGS | {"learning_rate": 1e30, "checkpoint_every": 1}))
    assert "Lower the learning rates" in str(raised.value) and time.monotonic() - started < 60
    state = json.loads((home / "runs" / "nan" / STATE).read_text())
    step = int(str(raised.value).split("At step ")[1].split(":")[0])
    assert state["latest_checkpoint_result"]["metrics"]["step"] == step  # the steps done before it, from 0
    assert not (home / "soups" / "nan").exists()


@pytest.mark.faults
def test_out_of_memory_says_what_was_asked_and_what_helps(home, monkeypatch):
    """Where the reckoning before the run was wrong."""
    for check in ("check_fits", "check_disk"):
        monkeypatch.setattr(pretrain_soe, check, lambda *_, **__: None)
    with pytest.raises(ValueError, match="ran out of memory with preset tiny, 1000000000 experts") as raised:
        pretrain_soe.run(Pretrain(name="huge", **SETTINGS | {"num_experts": 10**9}))
    for word in ("optimizer adam", "micro_batch_size", "more workers", "soe plan"):
        assert word in str(raised.value)


@pytest.mark.faults
def test_logical_gpus_without_cuda_are_refused_before_any_worker_starts(home):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    code = "import ray; ray.init(address='local', num_cpus=4, num_gpus=2, include_dashboard=False)"
    code, log = Job("gpus", own_cluster=True, code=code, num_workers=2, use_gpu=True).end()
    assert code == 2 and "counts GPUs, but torch sees none" in log.strip().splitlines()[-1], log
    assert not (home / "runs" / "gpus").exists()


def test_a_partition_that_cannot_be_read_ends_the_job_with_its_name(home, monkeypatch, capsys):
    """It is met by a fetcher, in the middle of the run, and the job's last line says so."""
    store = make_store(home / "stores" / "cut", [400, 400])
    asked = SETTINGS | dict(store="cut", mixtures_per_step=1, support_size=1, window_steps=1)
    settings = Pretrain(name="cut", **asked)
    opened = DomainStore(store)
    plan = run_plan.make_stream(settings, opened, run_plan.resolve(settings, opened).training).plan
    other = 1 - int(plan.steps(0, 1).domain_TB[0, 0])
    os.truncate(store / "domains" / partition_path(other), 500)
    monkeypatch.setattr(
        sys, "argv", ["pretrain_soe", "--config", settings.model_dump_json(exclude_unset=True)]
    )
    with pytest.raises(SystemExit) as exit_:
        runner.main(Pretrain, pretrain_soe.run)
    [said] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("error: ")]
    assert exit_.value.code == 2
    assert partition_path(other) in said and "has 500 bytes" in said


def test_a_store_is_verified_where_that_is_asked_for(home):
    """Other bytes of the same length are found by their sha256 alone."""
    store = make_store(home / "stores" / "altered", [400, 0, 300, 900])
    path = store / "domains" / partition_path(2)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match="node-0002.arrow was altered"):
        pretrain_soe.run(Pretrain(name="verified", verify_store=True, **SETTINGS | {"store": "altered"}))
    assert not (home / "runs" / "verified").exists()


def test_a_disk_that_is_too_small_is_refused_before_anything_starts(home, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("usage", "free")(1_000_000))
    with pytest.raises(
        ValueError, match="the run with its 2 checkpoints.* has 0.001 GB free.*lower checkpoints_kept"
    ):
        pretrain_soe.run(Pretrain(name="bad", **SETTINGS))
    assert not (home / "runs" / "bad").exists()
