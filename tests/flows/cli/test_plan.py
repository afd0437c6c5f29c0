"""``soe plan``, the check before a run, and the memory of a machine."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from dataclasses import replace
from types import SimpleNamespace

import pytest

from flows.cli import main as cli
from flows.cli import plan
from flows.machine_memory import available_memory, memory_limit
from flows.settings import Pretrain
from flows.training import fit_check
from flows.training import resolve_run as run_plan
from pipeline.cores import available_cores
from soe_model.presets import SoupConfig, preset
from storage_schema.domains import DomainStore
from tests.toy_store import make_store

PAPER = ["plan", "--preset", "paper-110m", "--device", "H200"]


def test_a_run_that_fits_is_shown_with_its_time(capsys):
    arguments = ["--optimizer", "adam-bf16-moments", "--micro-batch-size", "8"]
    assert cli.main(PAPER + arguments) == 0
    out = capsys.readouterr().out
    assert "110,418,432 parameters" in out and "a step, predicted" in out and "It fits." in out


GENERIC = ["--num-experts", "0", "--expert-rank", "4", "--mixtures-per-step", "8"]


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ([], {}),
        (["--num-experts", "3"], {"num_experts": 3}),
        (GENERIC, {"method": "generic", "expert_rank": 4, "mixtures_per_step": 8}),
        (
            ["--preset", "paper-110m", "--micro-batch-size", "2"],
            {"preset": "paper-110m", "micro_batch_size": 2},
        ),
    ],
)
def test_what_is_planned_is_what_a_run_of_these_settings_comes_to(tmp_path, monkeypatch, arguments, settings):
    """The generic twin was planned with the soup's mixtures and rank, which it has not."""
    store = DomainStore(make_store(tmp_path / "store", [30, 40, 50]))
    seen = {}
    monkeypatch.setattr(plan, "show", lambda setup, *a, **k: seen.update(setup=setup))
    monkeypatch.setattr(plan, "available_memory", lambda: 10**15)
    sizes = ["--vocab-size", str(store.vocab_size), "--num-domains", "3"]
    assert cli.main(["plan", *sizes, *arguments]) == 0
    soup, training = run_plan.resolve(Pretrain(**settings), store)
    backbone = soup.backbone | {
        name: 0 for name in ("bos_token_id", "eos_token_id")
    }  # unknown before a store is
    assert (seen["setup"].soup, seen["setup"].training) == (replace(soup, backbone=backbone), training)


def test_a_run_that_cannot_fit_is_shown_and_refused(capsys):
    assert cli.main(PAPER) == 1
    shown = capsys.readouterr()
    assert "experts and optimizer" in shown.out and "It fits" not in shown.out
    assert "optimizer=adam-bf16-moments" in shown.err and "num_workers=2" in shown.err


def test_no_time_is_invented_for_a_cpu(capsys, monkeypatch):
    monkeypatch.setattr(plan, "available_memory", lambda: 64 * 10**9)
    assert cli.main(["plan"]) == 0
    assert "not predicted" in capsys.readouterr().out
    assert cli.main(["plan", "--bandwidth", "10"]) == 0
    out = capsys.readouterr().out
    assert "ms of bank" in out and "of backbone" not in out


def test_a_backbone_from_a_file(tmp_path, capsys):
    llama = {
        "model_type": "llama",
        "vocab_size": 100,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    (tmp_path / "config.json").write_text(json.dumps(llama))
    assert cli.main(["plan", "--backbone", str(tmp_path / "config.json"), "--device", "H100"]) == 0
    # Two tables, and in a layer four h x h, three h x f and two norms; one norm more.
    assert f"{2 * 6400 + 2 * (4 * 64**2 + 3 * 64 * 128 + 128) + 64:,} parameters" in capsys.readouterr().out


def test_a_configuration_that_transformers_does_not_accept_is_refused(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_layer": "two"}))
    assert cli.main(["plan", "--backbone", str(tmp_path / "config.json")]) == 1
    assert "n_layer" in capsys.readouterr().err


def test_a_device_may_be_written_small(capsys):
    assert cli.main(["plan", "--device", "a100-40"]) == 0
    assert "A100-40 has" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "B7"], "H200"),
        (["--preset", "huge"], "paper-110m"),
        (["--optimizer", "sgd"], "factored"),
        (["--backbone", "/nowhere.json"], "/nowhere.json"),
        (["--num-workers", "3"], "not a multiple of the 3 workers"),
        (["--expert-rank", "64"], "Use a lower rank"),
    ],
)
def test_settings_that_are_none_are_refused(arguments, said, capsys):
    assert cli.main(["plan", *arguments]) == 1
    assert said in capsys.readouterr().err


def test_a_pretraining_run_is_checked_against_what_the_machine_has(monkeypatch):
    chosen = preset("tiny")
    backbone = chosen.backbone(vocab_size=512, sequence_length=128, end_of_text=0)
    soup = SoupConfig(backbone=backbone, num_experts=16, num_domains=64)
    monkeypatch.setattr(fit_check, "available_memory", lambda: 8 * 10**9)
    fit_check.check_fits(soup, chosen.training, num_workers=2, use_gpu=False)
    monkeypatch.setattr(fit_check, "available_memory", lambda: 10**9)
    with pytest.raises(ValueError, match="2 workers need"):
        fit_check.check_fits(soup, chosen.training, num_workers=2, use_gpu=False)


def test_a_run_on_several_machines_is_checked_against_theirs_not_against_the_drivers(monkeypatch, capsys):
    """All workers together were held against the memory of the one machine that the job runs on."""
    chosen = preset("tiny")
    backbone = chosen.backbone(vocab_size=512, sequence_length=128, end_of_text=0)
    run = dict(
        soup=SoupConfig(backbone=backbone, num_experts=16, num_domains=64),
        training=chosen.training,
        num_workers=4,
        use_gpu=False,
    )
    monkeypatch.setattr(fit_check, "available_memory", lambda: 10**9)  # the driver's, which is small
    monkeypatch.setattr(fit_check, "memory_of_nodes", lambda use_gpu: [(10**9, 1), (16 * 10**9, 4)])
    fit_check.check_fits(**run)
    monkeypatch.setattr(fit_check, "available_memory", lambda: 64 * 10**9)  # which is large
    monkeypatch.setattr(fit_check, "memory_of_nodes", lambda use_gpu: [(10**9, 4), (10**9, 4)])
    with pytest.raises(ValueError, match=r"the least that it finds on the cluster's 2 machines has 0\.5 GB"):
        fit_check.check_fits(**run)
    monkeypatch.setattr(fit_check, "memory_of_nodes", lambda use_gpu: None)
    fit_check.check_fits(**run)
    assert "is not checked" in capsys.readouterr().out


def test_a_pretraining_run_is_checked_against_the_disk(monkeypatch, tmp_path):
    chosen = preset("paper-110m")
    backbone = chosen.backbone(vocab_size=32_000, sequence_length=1024, end_of_text=0)
    soup = SoupConfig(backbone=backbone, num_experts=128, num_domains=64)
    run = dict(num_workers=1, folder=tmp_path / "run", checkpoints_kept=2)
    # Three checkpoints of 12 bytes a parameter of the bank (129 models), and a soup of 4: 40 x 129 x 110.4 million.
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(571 * 10**9))
    fit_check.check_disk(soup, chosen.training, **run)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(569 * 10**9))
    with pytest.raises(
        ValueError, match="2 checkpoints, the next one and the soup takes about 570 GB .* 569 GB"
    ):
        fit_check.check_disk(soup, chosen.training, **run)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(200 * 10**9))
    (tmp_path / "run/checkpoint").mkdir(parents=True)
    with open(tmp_path / "run/checkpoint/bank", "wb") as file:
        file.truncate(380 * 10**9)  # a hole: what a resumed run has written already is not wanted again
    fit_check.check_disk(soup, chosen.training, **run)


def make_machine(root, group, folder, files):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(group + "\n")
    (root / folder).mkdir(parents=True)
    for name, text in files.items():
        (root / folder / name).write_text(text)


@pytest.fixture()
def memory(monkeypatch):
    """Of the machine: 9 MB, of which 8,192,000 bytes are available."""
    found = SimpleNamespace(total=9_000_000, available=8_192_000)
    monkeypatch.setattr("psutil.virtual_memory", lambda: found)


@pytest.mark.parametrize(("limit", "left"), [("max", 8_192_000), ("5000", 5000 - 3000 + 1000)])
def test_memory_in_a_control_group(tmp_path, memory, limit, left):
    files = {"memory.max": limit, "memory.current": "3000", "memory.stat": "anon 2000\ninactive_file 1000\n"}
    make_machine(tmp_path, "0::/a/b", "sys/fs/cgroup/a", files)
    assert available_memory(tmp_path) == left
    assert memory_limit(tmp_path) == (9_000_000 if limit == "max" else 5000)


def test_memory_in_a_control_group_of_version_1(tmp_path, memory):
    files = {
        "memory.limit_in_bytes": "5000",
        "memory.usage_in_bytes": "3000",
        "memory.stat": "total_inactive_file 1000",
    }
    make_machine(tmp_path, "4:memory:/a", "sys/fs/cgroup/memory/a", files)
    assert available_memory(tmp_path) == 3000 and memory_limit(tmp_path) == 5000


@pytest.mark.parametrize(
    ("group", "folder", "files", "cores"),
    [
        ("0::/a/b", "sys/fs/cgroup/a", {"cpu.max": "max 100000"}, 16),
        ("0::/a/b", "sys/fs/cgroup/a", {"cpu.max": "250000 100000"}, 3),
        ("0::/elsewhere", "sys/fs/cgroup", {"cpu.max": "50000 100000"}, 1),
        ("0::/a/b", "sys/fs/cgroup/a", {"cpu.max": "6400000 100000"}, 16),
        ("4:cpu,cpuacct:/a", "sys/fs/cgroup/cpu", {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}, 16),
        ("4:cpu,cpuacct:/a", "sys/fs/cgroup/cpu/a", {"cpu.cfs_quota_us": "200000", "cpu.cfs_period_us": "100000"}, 2),
    ],
)  # fmt: skip
def test_cores_in_a_control_group(tmp_path, monkeypatch, group, folder, files, cores):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)))
    make_machine(tmp_path, group, folder, files)
    assert available_cores(tmp_path) == cores
