"""Whether a run fits in the memory of its machines and on the disk, before it starts."""

from __future__ import annotations

import shutil
from collections import namedtuple

import pytest
import ray

from flows import machine_memory
from flows.training import fit_check
from flows.training.resolve_run import ResolvedRun
from soe_model.presets import SoupConfig, preset


def resolved(name, *, vocab_size, sequence_length, num_experts, num_workers=1):
    chosen = preset(name)
    backbone = chosen.backbone(vocab_size=vocab_size, sequence_length=sequence_length, end_of_text=0)
    soup = SoupConfig(backbone=backbone, num_experts=num_experts, num_domains=64)
    return ResolvedRun(soup=soup, training=chosen.training, world_sizes=[num_workers])


TINY = dict(vocab_size=512, sequence_length=128, num_experts=16)


def test_a_pretraining_run_is_checked_against_what_the_machine_has(monkeypatch):
    run = resolved("tiny", **TINY)
    monkeypatch.setattr(fit_check, "available_memory", lambda: 8 * 10**9)
    fit_check.check_fits(run, num_workers=2, use_gpu=False)
    monkeypatch.setattr(fit_check, "available_memory", lambda: 10**9)
    with pytest.raises(ValueError, match="2 workers need"):
        fit_check.check_fits(run, num_workers=2, use_gpu=False)


def test_a_run_on_several_machines_is_checked_against_theirs_not_against_the_drivers(monkeypatch, capsys):
    """All workers together were held against the memory of the one machine that the job runs on."""
    run = dict(run=resolved("tiny", **TINY), num_workers=4, use_gpu=False)
    monkeypatch.setattr(fit_check, "available_memory", lambda: 10**9)  # the driver's, which is small
    monkeypatch.setattr(fit_check, "memory_of_nodes", lambda use_gpu, cores: [(10**9, 1), (16 * 10**9, 4)])
    fit_check.check_fits(**run)
    monkeypatch.setattr(fit_check, "available_memory", lambda: 64 * 10**9)  # which is large
    monkeypatch.setattr(fit_check, "memory_of_nodes", lambda use_gpu, cores: [(10**9, 4), (10**9, 4)])
    with pytest.raises(ValueError, match=r"the least that it finds on the cluster's 2 machines has 0\.5 GB"):
        fit_check.check_fits(**run)
    monkeypatch.setattr(fit_check, "memory_of_nodes", lambda use_gpu, cores: None)
    fit_check.check_fits(**run)
    assert "is not checked" in capsys.readouterr().out


def test_a_pretraining_run_is_checked_against_the_disk(monkeypatch, tmp_path):
    bank = resolved("paper-110m", vocab_size=32_000, sequence_length=1024, num_experts=128)
    run = dict(run=bank, folder=tmp_path / "run", checkpoints_kept=2)
    # Three checkpoints of 12 bytes a parameter of the bank (129 models), and a soup of 4: 40 x 129 x 110.4 million.
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(571 * 10**9))
    fit_check.check_disk(**run)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(569 * 10**9))
    with pytest.raises(
        ValueError, match="2 checkpoints, the next one and the soup takes about 570 GB .* 569 GB"
    ):
        fit_check.check_disk(**run)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(200 * 10**9))
    (tmp_path / "run/checkpoint").mkdir(parents=True)
    with open(tmp_path / "run/checkpoint/bank", "wb") as file:
        file.truncate(380 * 10**9)  # a hole: what a resumed run has written already is not wanted again
    fit_check.check_disk(**run)


def test_a_node_has_as_many_workers_as_it_has_their_cores(ray_cluster, monkeypatch):
    """Workers of 4 CPUs have one place on a node of 4, and none on one of 2."""
    nodes = [
        {"NodeID": f"{cpus:056x}", "Alive": True, "Resources": {"CPU": float(cpus)}} for cpus in (2, 4, 16)
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "remote", lambda **how: lambda function: Answers())
    monkeypatch.setattr(ray, "get", lambda asked, timeout: asked)
    assert machine_memory.memory_of_nodes(False, 4) == [(10**9, 1), (10**9, 4)]
    assert machine_memory.memory_of_nodes(False) == [(10**9, 2), (10**9, 4), (10**9, 16)]


class Answers:
    """A remote function that says at once that its node has a gigabyte."""

    def options(self, **how):
        return self

    def remote(self, use_gpu):
        return 10**9
