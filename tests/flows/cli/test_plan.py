"""``soe plan``: what a pretraining run needs, before it starts."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from flows.cli import main as cli
from flows.cli import plan
from flows.settings import Pretrain
from flows.training import resolve_run as run_plan
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
    run = run_plan.resolve(Pretrain(**settings), store)
    soup, training = run.soup, run.training
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
        # Of its own tokenizer, not of the store that it will be trained on.
        "bos_token_id": 128000,
        "eos_token_id": [128001, 128009],
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
