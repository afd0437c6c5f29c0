"""`soe specialize`, the job and Python make the same specialists, by each method."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from flows.jobs import specialize as job
from flows.settings import Specialize
from flows.specialists import losses as loss_meter
from flows.specialists import maker as specialist_maker
from flows.specialists.maker import SpecialistMaker
from flows.specialists.methods import Method
from pipeline.specialists.domain_weights import estimate_domain_weights
from pipeline.specialists.sets import SpecialistSet
from pipeline.stream.replay import generic_windows
from soe_model.files.soup import SoupOfExperts
from soe_model.model.flat_module import unflatten
from soe_model.specialists.evaluation import window_losses
from soe_model.specialists.gain import gain_line
from storage_schema.manifest import content_digest, read_manifest
from tests.flows.cli.specialist_commands import ALGORITHM_3, run, tensors
from tests.served_soup import POSITIONS, sentences
from tests.toy_store import make_store


def test_the_command_makes_a_model_and_says_what_it_is_worth(soup, texts, made, capsys):
    manifest = read_manifest(made, "specialist")
    assert manifest.configuration["method"] == "nearest-centroids"
    losses, sure = manifest.counts["losses"], manifest.counts["texts"]
    assert losses["made"] == losses["nearest_centroids"] > 0
    assert {"generic_instance", "nearest_domain", "windows"} <= losses.keys()
    low, high = losses["nearest_centroids_interval"]
    assert (
        low < losses["nearest_centroids"] < high
        and sure["count"] == 20
        and sure["domains"] == 2
        and 0 < sure["entropy"] < np.log(2) + 1e-6
    )
    assert any("Only 20 texts" in warning for warning in sure["warnings"])
    before = (made / "specialist.json").stat().st_mtime_ns
    assert run("specialize", soup, "--texts", texts, "--out", made, *ALGORITHM_3) == 0  # the same: it is kept
    assert (made / "specialist.json").stat().st_mtime_ns == before
    shown = capsys.readouterr().out
    assert "generic mixture's instance" in shown and "20 passages fall into 2 domains" in shown


def test_python_command_and_job_give_the_same_tensors(soup, texts, made, tmp_path, ray_cluster):
    settings = Specialize(
        soup=str(soup),
        texts={"kitchen": str(texts)},
        output=str(tmp_path / "out"),
        method="nearest-centroids",
    )
    report = job.run(settings)
    by_job, by_command = tensors(tmp_path / "out/kitchen"), tensors(made)
    assert report["specialists"] == ["kitchen"] and report["specialist_sets"][0]["soup_loss"] > 0
    opened = SoupOfExperts.open(soup)
    maker = SpecialistMaker(opened)
    [chosen] = job.read_sets(Specialize(texts={"kitchen": str(texts)}))
    weights = estimate_domain_weights(chosen.texts, opened.tree, maker.embedder)
    by_python = opened.specialist(torch.from_numpy(weights).float()).state_dict()
    assert by_job.keys() == by_command.keys() <= by_python.keys()
    for name, tensor in by_command.items():
        assert torch.equal(tensor, by_job[name]) and torch.equal(tensor, by_python[name]), name


@pytest.mark.parametrize("method", ["learned-coefficients", "fine-tuned"])
def test_the_costlier_methods_lower_the_loss_of_the_texts(soup, texts, made, tmp_path, method, capsys):
    options = [
        "--method",
        method,
        "--learning-steps",
        40,
        "--learning-rate",
        0.01,
        "--evaluation-passages",
        4,
    ]
    assert run("specialize", soup, "--texts", texts, "--out", tmp_path / "out", *options) == 0
    manifest = read_manifest(tmp_path / "out", "specialist")
    learned = manifest.counts["learned"]
    assert learned["best_step"] > 0 and min(learned["stopping_losses"]) < learned["stopping_losses"][0]
    assert manifest.counts["losses"]["made"] != manifest.counts["losses"]["nearest_centroids"]
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    capsys.readouterr()
    code = run("verify", tmp_path / "out", "--soup", soup)
    if method == "fine-tuned":
        assert code == 1 and "no recipe gives its tensors" in capsys.readouterr().err
    else:
        assert code == 0 and "each bit" in capsys.readouterr().out


def test_by_itself_a_specialist_goes_as_far_as_helps_and_says_what_it_gains(
    soup, tmp_path, capsys, monkeypatch
):
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences("law")))
    options = ["--evaluation-passages", 12, "--out", tmp_path / "a"]
    assert run("specialize", soup, "--texts", texts, *options) == 0
    manifest = read_manifest(tmp_path / "a", "specialist")
    blend, losses = manifest.configuration["blend"], manifest.counts["losses"]
    assert manifest.configuration["method"] == "refined" and blend["share"] > 0
    assert losses["made"] < losses["generic_instance"]
    line = gain_line(manifest.configuration, manifest.counts)
    shown = capsys.readouterr().out
    assert line.startswith("Gain: +") and "text kept apart" in line and line in shown
    assert f"domain weights: {blend['share']:g} of those" in shown and "Method: refined." in shown
    steps = manifest.configuration["refined"]["steps"]
    for said in (shown, " ".join((tmp_path / "a/README.md").read_text().split())):
        assert (f"{steps} steps of gradient descent" in said) == (steps > 0)
    assert line in (tmp_path / "a/README.md").read_text()
    assert run("verify", tmp_path / "a", "--soup", soup) == 0
    options = ["--evaluation-passages", 0, "--out", tmp_path / "b"]
    assert run("specialize", soup, "--texts", texts, *options) == 0
    assert "cross-fitted on the texts given" in capsys.readouterr().out
    monkeypatch.setattr("flows.specialists.methods.MOST_REFINED", 1)
    assert run("specialize", soup, "--texts", texts, *options[:2], "--out", tmp_path / "c") == 0
    assert read_manifest(tmp_path / "c", "specialist").configuration["method"] == "blended"


@pytest.mark.parametrize("method", ["blended", "generic"])
def test_the_specialist_is_the_generic_instance_where_nothing_is_gained_or_that_is_asked_for(
    soup, tmp_path, capsys, method
):
    random = np.random.default_rng(0)
    for number in range(12):
        noise = "".join(random.choice(list("qxzjkvw0123456789#@&%$ "), 90))
        (tmp_path / f"{number:02d}.txt").write_text(noise)
    assert run("specialize", soup, "--texts", tmp_path, "--method", method, "--out", tmp_path / "made") == 0
    shown = capsys.readouterr().out
    said = {
        "blended": "No gain: use the generic model, which this is",
        "generic": "This is the generic model.",
    }
    assert said[method] in shown
    assert run("verify", tmp_path / "made", "--soup", soup) == 0
    opened = SoupOfExperts.open(soup)
    weights = torch.from_numpy(opened.generic_weights).float()
    instance_P = opened.instances(opened.coefficients(weights[None]))[0]
    for name, tensor in unflatten(instance_P, opened.layout).items():
        assert torch.equal(tensor, tensors(tmp_path / "made")[name])


def test_a_replayed_share_comes_from_the_store(soup, texts, tmp_path, monkeypatch):
    store = make_store(tmp_path / "store", [3000, 1000])
    replayed = []

    def watched(*arguments, **options):
        take = generic_windows(*arguments, **options)
        return lambda count: replayed.append(take(count)) or replayed[-1]

    monkeypatch.setattr(specialist_maker, "generic_windows", watched)
    options = [
        "--method",
        "fine-tuned",
        "--replay-store",
        store,
        "--replay-share",
        0.5,
        "--learning-steps",
        5,
    ]
    assert run("specialize", soup, "--texts", texts, "--out", tmp_path / "a", *options) == 0
    assert read_manifest(tmp_path / "a", "specialist").configuration["replay_share"] == 0.5
    windows = torch.cat(replayed)
    learning = read_manifest(tmp_path / "a", "specialist").configuration["learning"]
    assert len(replayed) == 5 and 0 < len(windows) <= 5 * learning["batch_size"]
    assert windows.shape[1] == POSITIONS + 1 and windows.max() < 15  # the toy's tokens


def test_the_rule_is_the_one_asked_for(soup, tmp_path):
    texts, out = tmp_path / "between.txt", tmp_path / "tree"
    texts.write_text("the telescope saw a thing orbit while the orchestra tuned its strings")
    assert run("specialize", soup, "--texts", texts, "--out", out, "--rule", "tree", *ALGORITHM_3) == 0
    opened = SoupOfExperts.open(soup)
    [chosen] = job.read_sets(Specialize(texts={"tree": str(texts)}))
    flat, expected = (
        estimate_domain_weights(chosen.texts, opened.tree, SpecialistMaker(opened).embedder, rule=rule)
        for rule in ("flat", "tree")
    )
    assert not np.array_equal(flat, expected)  # else this shows nothing
    found = read_manifest(out, "specialist").configuration
    assert found["rule"] == "tree" and found["texts"] == content_digest(chosen.texts)
    assert found["domain_weights"] == {
        str(k): pytest.approx(expected[k]) for k in np.flatnonzero(expected).tolist()
    }


@pytest.mark.parametrize("name", ["blended", "refined", "nearest-centroids"])
def test_several_specialists_are_those_made_one_by_one(soup, name, monkeypatch):
    """Also of a soup so large that each is put together in a pass of its own; nothing equal is measured twice."""
    method = Method(name=name, bootstrap=0)
    opened = SoupOfExperts.open(soup)
    sets = [
        SpecialistSet(name=topic, texts=sentences(topic, 12), evaluation=sentences(topic)[12:])
        for topic in ("law", "music", "sailing")
    ]
    alone = [next(SpecialistMaker(opened).make([one], method)) for one in sets]
    for together in (1 << 30, 1):
        monkeypatch.setattr(loss_meter, "TOGETHER_BYTES", together)
        made = list(SpecialistMaker(opened).make(sets, method))
        for one, other in zip(made, alone, strict=True):
            assert torch.equal(one.instance_P, other.instance_P)
            assert one.recipe == other.recipe and one.report == other.report
    if name != "nearest-centroids":
        return
    measured = []
    count = lambda *arguments: measured.append(0) or window_losses(*arguments)  # noqa: E731
    monkeypatch.setattr(loss_meter, "window_losses", count)
    maker = SpecialistMaker(opened)
    [again] = maker.make(sets[:1], Method(name=name, bootstrap=8))
    # Of one domain only: the nearest domain and what is made are one model, as are the resamples.
    assert len(measured) == 3
    assert again.report["losses"]["made"] == alone[0].report["losses"]["made"]
    maker.meter.generic = opened.model(opened.instances(maker.meter.generic_N[None])[0])
    [given] = maker.make(sets[:1], method)
    assert given.report == alone[0].report
