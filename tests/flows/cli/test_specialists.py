"""The commands for specialists, on a small soup with a real embedder."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from flows.cli import main as cli
from flows.jobs import specialize as job
from flows.settings import Specialize
from flows.specialists import losses as loss_meter
from flows.specialists import maker as specialist_maker
from flows.specialists.losses import LossMeter
from flows.specialists.maker import SpecialistMaker
from flows.specialists.methods import Method
from pipeline.embeddings import embedder
from pipeline.specialists.domain_weights import estimate_domain_weights
from pipeline.specialists.sets import SpecialistSet
from pipeline.stream.replay import generic_windows
from soe_model.files.soup import SoupOfExperts
from soe_model.model.flat_module import unflatten
from soe_model.specialists.evaluation import window_losses
from soe_model.specialists.gain import gain_line
from storage_schema.manifest import StoreError, content_digest, read_manifest
from tests.served_soup import POSITIONS, make_served_soup, sentences
from tests.toy_store import make_store

ALGORITHM_3 = "--method", "nearest-centroids"


@pytest.fixture(scope="module", autouse=True)
def one_embedder():
    """The same one is loaded once for all commands of this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedder, "load_embedder", cache(embedder.load_embedder))
        yield


@pytest.fixture(scope="module")
def soup(tmp_path_factory):
    """Trained a little, so that its specialists differ."""
    return make_served_soup(tmp_path_factory.mktemp("home") / "soups" / "small", steps=30)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """24 sentences of two topics, a file each."""
    folder = tmp_path_factory.mktemp("texts")
    for number, text in enumerate([*sentences("cooking", 16), *sentences("sailing", 8)]):
        (folder / f"{number:02d}.txt").write_text(text)
    return folder


@pytest.fixture(scope="module")
def made(soup, texts, tmp_path_factory):
    """By Algorithm 3."""
    out = tmp_path_factory.mktemp("made") / "kitchen"
    assert run("specialize", soup, "--texts", texts, "--out", out, *ALGORITHM_3) == 0
    return out


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


def tensors(folder):
    return load_file(folder / "model.safetensors")


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


def test_by_itself_a_specialist_goes_as_far_as_helps_and_says_what_it_gains(soup, tmp_path, capsys):
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences("law")))
    options = ["--evaluation-passages", 12, "--out", tmp_path / "a"]
    assert run("specialize", soup, "--texts", texts, *options) == 0
    manifest = read_manifest(tmp_path / "a", "specialist")
    blend, losses = manifest.configuration["blend"], manifest.counts["losses"]
    assert manifest.configuration["method"] == "blended" and blend["share"] > 0
    assert losses["made"] < losses["generic_instance"]
    line = gain_line(manifest.configuration, manifest.counts)
    shown = capsys.readouterr().out
    assert line.startswith("Gain: +") and "text kept apart" in line and line in shown
    assert f"domain weights: {blend['share']:g} of those" in shown
    assert line in (tmp_path / "a/README.md").read_text()
    assert run("verify", tmp_path / "a", "--soup", soup) == 0
    options = ["--evaluation-passages", 0, "--out", tmp_path / "b"]
    assert run("specialize", soup, "--texts", texts, *options) == 0
    assert "cross-fitted on the texts given" in capsys.readouterr().out


def test_where_nothing_is_gained_the_specialist_is_the_generic_instance(soup, tmp_path, capsys):
    random = np.random.default_rng(0)
    for number in range(12):
        noise = "".join(random.choice(list("qxzjkvw0123456789#@&%$ "), 90))
        (tmp_path / f"{number:02d}.txt").write_text(noise)
    assert run("specialize", soup, "--texts", tmp_path, "--out", tmp_path / "made") == 0
    shown = capsys.readouterr().out
    assert "No gain: use the generic model, which this is" in shown
    opened = SoupOfExperts.open(soup)
    weights = torch.from_numpy(opened.generic_weights).float()
    instance_P = opened.instances(opened.coefficients(weights[None]))[0]
    for name, tensor in unflatten(instance_P, opened.layout).items():
        assert torch.equal(tensor, tensors(tmp_path / "made")[name])


def test_a_recipe_makes_the_model_again_and_verify_says_so(soup, made, tmp_path, capsys):
    assert run("materialize", made / "specialist.json", "--soup", soup, "--out", tmp_path / "again") == 0
    assert (made / "model.safetensors").read_bytes() == (tmp_path / "again/model.safetensors").read_bytes()
    assert run("verify", tmp_path / "again", "--soup", soup) == 0
    data = bytearray((tmp_path / "again/model.safetensors").read_bytes())
    data[-3] ^= 1
    (tmp_path / "again/model.safetensors").write_bytes(data)
    assert run("verify", tmp_path / "again", "--soup", soup) == 1
    assert "differs in 1 of" in capsys.readouterr().err


def test_blending(soup, made, tmp_path, capsys):
    (tmp_path / "law.txt").write_text("\n\n".join(sentences("law", 6)))
    assert (
        run("specialize", soup, "--texts", tmp_path / "law.txt", "--out", tmp_path / "law", *ALGORITHM_3) == 0
    )
    options = ["--soup", soup, "--shares", 1, 3]
    assert run("blend", made, tmp_path / "law", *options, "--out", tmp_path / "mean") == 0
    one, other, mean = tensors(made), tensors(tmp_path / "law"), tensors(tmp_path / "mean")
    for name in mean:
        torch.testing.assert_close(mean[name], 0.25 * one[name] + 0.75 * other[name], rtol=0, atol=1e-6)
    assert (
        run("blend", made, tmp_path / "law", *options, "--of", "domain-weights", "--out", tmp_path / "mix")
        == 0
    )
    weights = read_manifest(tmp_path / "mix", "specialist").configuration["domain_weights"]
    assert sum(weights.values()) == pytest.approx(1) and max(weights.values()) == pytest.approx(0.75)
    assert run("blend", made, "--soup", soup, "--out", tmp_path / "one") == 1
    assert "give two recipes or more" in capsys.readouterr().err


def test_scoring_gives_the_two_tables(soup, texts, made, tmp_path):
    ratios = tmp_path / "given.csv"
    weights = read_manifest(made, "specialist").configuration["domain_weights"]
    columns = [f"domain_{domain:04d}" for domain in range(8)]
    rows = [[weights.get(str(domain), 0.0) for domain in range(8)], [0.125] * 8]
    lines = [
        ",".join(["run", *columns]),
        *(",".join([f"r{n}", *map(str, row)]) for n, row in enumerate(rows)),
    ]
    ratios.write_text("\n".join(lines) + "\n")
    out = tmp_path / "scores"
    given = ["--texts", f"kitchen={texts}", "--texts", f"same={texts}"]
    assert run("score", soup, "--mixtures", ratios, *given, "--out", out) == 0
    table = pl.read_csv(out / "metrics.csv")
    assert table.columns == ["run", "kitchen", "same"] and table["run"].to_list() == ["r0", "r1"]
    assert table["kitchen"].to_list() == table["same"].to_list()
    assert (out / "ratios.csv").read_bytes() == ratios.read_bytes()
    meter = LossMeter(SoupOfExperts.open(soup))
    [everything] = job.read_sets(Specialize(texts={"a": str(texts)}, evaluation_passages=0))
    expected = meter.losses(
        meter.soup.coefficients(torch.tensor(rows)), meter.windows(everything.texts)
    ).mean(1)
    np.testing.assert_allclose(table["kitchen"].to_numpy(), expected.numpy(), rtol=1e-9)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("run,domain_0000,domain_0001\na,0.5,0.6\n", "run a: domain weights sum to 1.1"),
        ("run,domain_0000,domain_0001\na,1.5,-0.5\n", "run a: domain weight 1 is -0.5"),
        ("run,domain_0000,domain_0001\na,1.0,\n", "run a: domain weight 1 is nan"),
        ("run,domain_0008\na,1.0\n", "names domain 8; the soup has 8 domains"),
        ("nothing\n", "is no table of mixtures"),
    ],
)
def test_tables_that_are_no_mixtures_are_refused(soup, texts, tmp_path, table, message, capsys):
    (tmp_path / "bad.csv").write_text(table)
    given = ["--mixtures", tmp_path / "bad.csv", "--texts", f"a={texts}", "--out", tmp_path / "out"]
    assert run("score", soup, *given) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_texts_unlike_the_corpus_work_and_are_said_to_be_far(soup, tmp_path, capsys):
    lines = ["今天天气很好，我们去公园散步。", "这本书讲述了一个关于勇气的故事。", "他每天早上六点起床跑步。"]
    (tmp_path / "zh.txt").write_text("\n\n".join(lines * 3))
    assert run("specialize", soup, "--texts", tmp_path / "zh.txt", "--out", tmp_path / "zh") == 0
    assert "The texts are far from every domain" in capsys.readouterr().out
    assert (tmp_path / "zh/model.safetensors").exists()


def test_one_text_works_and_is_said_to_be_few(soup, tmp_path, capsys):
    (tmp_path / "one.txt").write_text(sentences("music", 1)[0])
    assert run("specialize", soup, "--texts", tmp_path / "one.txt", "--out", tmp_path / "one") == 0
    shown = capsys.readouterr().out
    assert "Only one text chose the domain weights" in shown and "no losses" in shown


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"  \n \n", "no text in"), (b"\x00\xe8\xff" * 50, "not UTF-8")],
)
def test_texts_that_are_none_are_refused(soup, tmp_path, content, message, capsys):
    (tmp_path / "bad.txt").write_bytes(content)
    assert run("specialize", soup, "--texts", tmp_path / "bad.txt", "--out", tmp_path / "out") == 1
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_of_enormous_texts_a_bounded_part_of_every_file_is_read(soup, tmp_path):
    for name, topic in (("a", "law"), ("b", "music")):
        body = "\n\n".join(f"{sentence} {n}" for n in range(20_000) for sentence in sentences(topic, 2))
        (tmp_path / f"{name}.txt").write_text(body)
    [read] = job.read_sets(Specialize(texts={"big": str(tmp_path)}, max_texts=60))
    assert len(read.texts) == 60 and len(read.evaluation) == 22
    assert sum("court" in text for text in read.texts) in range(20, 41)
    assert not set(read.texts) & set(read.evaluation)


def test_what_stands_in_the_way_is_named(soup, texts, made, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    assert run("specialize", soup, "--texts", texts, "--out", tmp_path / "full") == 1
    assert "full exists and holds no specialist" in capsys.readouterr().err
    (tmp_path / "law.txt").write_text(sentences("law", 1)[0])
    assert run("specialize", soup, "--texts", tmp_path / "law.txt", "--out", made) == 1
    assert "was built with other settings" in capsys.readouterr().err
    other = make_served_soup(tmp_path / "other", steps=1)
    for command in (["verify", made], ["materialize", made, "--out", tmp_path / "x"]):
        assert run(*command, "--soup", other) == 1
        assert "the recipe is of the soup" in capsys.readouterr().err
    (other / "expert-002.safetensors").write_bytes(b"x")
    assert run("specialize", other, "--texts", texts, "--out", tmp_path / "y") == 1
    assert "expert-002.safetensors has 1 bytes" in capsys.readouterr().err
    assert run("specialize", "nothing", "--texts", texts, "--out", tmp_path / "y") == 1
    assert "no soup at" in capsys.readouterr().err
    assert run("specialize", soup, "--texts", tmp_path / "nowhere", "--out", tmp_path / "y") == 1
    assert "nowhere" in capsys.readouterr().err


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


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--learning-rate", 0.1], "learning_rate is 0.1, of which method=blended has no use"),
        (["--learning-steps", 7], "choose method learned-coefficients or fine-tuned"),
        (["--method", "learned-coefficients", "--replay-share", 0.5], "or choose method fine-tuned"),
        (["--method", "fine-tuned", "--replay-share", 0.5], "needs a store to replay"),
        (["--method", "fine-tuned", "--replay-store", "x"], "'x' without a share of it"),
    ],
)
def test_settings_that_the_method_has_no_use_for_are_refused(soup, texts, tmp_path, options, said, capsys):
    assert run("specialize", soup, "--texts", texts, "--out", tmp_path / "a", *options) == 1
    assert said in capsys.readouterr().err and not (tmp_path / "a").exists()


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


@pytest.mark.parametrize("name", ["blended", "nearest-centroids"])
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
    if name == "blended":
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


def test_another_embedder_of_the_same_name_is_refused(soup, texts, tmp_path, monkeypatch):
    opened = SoupOfExperts.open(soup)
    made_with = opened.manifest.configuration["embedder"]
    made_with["weights"] = embedder.weights_digest(SpecialistMaker(opened).embedder)
    assert SpecialistMaker(opened).embedder is not None
    made_with["weights"] = "other"
    with pytest.raises(StoreError, match="other weights than the one the store was built with"):
        SpecialistMaker(opened).assign(["a text"])


def test_a_twin_that_cannot_be_compared_is_refused(soup, texts, tmp_path, capsys):
    options = ["--texts", texts, "--out", tmp_path / "a"]
    assert run("specialize", soup, *options, "--compare-with", soup) == 1
    assert "a soup of 8 experts; name a generic twin" in capsys.readouterr().err
    twin = make_served_soup(tmp_path / "twin", experts=0)
    assert run("specialize", soup, *options, "--compare-with", twin) == 0
    assert "twin" in read_manifest(tmp_path / "a", "specialist").counts["losses"]
    other = make_served_soup(tmp_path / "other", experts=0, vocab_size=300)
    assert run("specialize", soup, *options, "--compare-with", other, "--rebuild") == 1
    assert "has another tokenizer" in capsys.readouterr().err


def test_what_is_finished_is_whole_and_the_same(soup, texts, made, tmp_path, capsys):
    settings = Specialize(soup=str(soup), texts={"kitchen": str(texts)}, output=str(tmp_path))
    job.run_here(settings)
    model = tmp_path / "kitchen/model.safetensors"
    whole = model.read_bytes()
    for damage in (b"x", None):
        model.unlink() if damage is None else model.write_bytes(damage)
        job.run_here(settings)
        assert model.read_bytes() == whole
    capsys.readouterr()
    job.run_here(settings)
    assert "is finished; nothing to make" in capsys.readouterr().out
    (tmp_path / "law.txt").write_text("\n\n".join(sentences("law", 6)))
    assert (
        run("specialize", soup, "--texts", tmp_path / "law.txt", "--out", tmp_path / "kitchen", "--rebuild")
        == 0
    )
    with pytest.raises(StoreError, match="kitchen was built with other settings"):
        job.run_here(settings)
    (tmp_path / "made.json").write_text('{"report": 1}')
    with pytest.raises(StoreError, match="kitchen was built with other settings"):
        job.run_here(settings)


@pytest.mark.parametrize("content", [b"\0" * 5000, "a text of words".encode("utf-16-le")])
def test_binary_texts_that_are_utf8_are_refused(soup, tmp_path, content, capsys):
    (tmp_path / "a.txt").write_bytes(content)
    assert run("specialize", soup, "--texts", tmp_path / "a.txt", "--out", tmp_path / "out") == 1
    assert "holds zero bytes: it is binary, or UTF-16" in capsys.readouterr().err


def test_texts_of_one_domain_give_no_interval(soup, tmp_path):
    """Drawn again they are the same: that says nothing of other texts."""
    (tmp_path / "law").mkdir()
    for number, text in enumerate(sentences("law", 12)):
        (tmp_path / f"law/{number:02d}.txt").write_text(text)
    assert run("specialize", soup, "--texts", tmp_path / "law", "--out", tmp_path / "out") == 0
    counts = read_manifest(tmp_path / "out", "specialist").counts
    assert counts["texts"]["domains"] == 1 and "nearest_centroids_interval" not in counts["losses"]


def test_warnings_are_told_where_nothing_is_measured(soup, texts, tmp_path, capsys):
    few = Specialize(
        soup=str(soup), texts={"few": str(texts)}, evaluation_passages=0, output=str(tmp_path / "out")
    )
    report = job.run_here(few)
    assert "Only 24 texts" in report["warnings"]["few"] and "few: Only 24 texts" in capsys.readouterr().out
