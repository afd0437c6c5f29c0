"""The benchmark of what a soup is worth, in small: its texts are read, its runs go on where they were cut off."""

import gzip
import json
import re
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from flows.settings import Pretrain
from pipeline.specialists.sets import SpecialistSet
from pipeline.tokenizer import load_tokenizer
from storage_schema.domains import DomainStore
from storage_schema.errors import UserError
from storage_schema.layout import store_folder
from tests.benchmarks.worth import corpus, crisp, kinds, packaged_training, packages, report, sets, training
from tests.benchmarks.worth import package as packaging
from tests.benchmarks.worth.plain_text import of_html
from tests.toy_store import write_texts


def test_a_page_gives_what_its_reader_sees():
    page = """<html><head><title>no</title></head><body><div role="navigation">no <div>nor this</div></div>
        <p>One<br>two &amp; three<script>no()</script></p><li>never closed<div class="sphinxsidebar">no</div>
        <p>last</body></html>"""
    assert of_html(page).split() == ["One", "two", "&", "three", "never", "closed", "last"]


def test_unclosed_elements_cost_linear_time():
    seconds = []
    for size in 4_000, 32_000:
        begun = time.process_time()
        of_html("<div><li>word " * size)
        seconds.append(time.process_time() - begun)
    assert seconds[1] < 24 * seconds[0]  # 8 for linear, 64 for quadratic


def test_kinds_know_their_formats(tmp_path):
    (tmp_path / "a.mm").write_text("$( A rule. (Contributed by NM, 1-Jan-2000.) $)\nid $p |- ph $= ABC $.")
    assert list(kinds._metamath(tmp_path)) == [("formal", "$( A rule.  $)\nid $p |- ph ")]
    (tmp_path / "gcide.dict.dz").write_bytes(gzip.compress(b"Ape n.\n   A beast.\nRun v.\n   To go fast."))
    assert dict(kinds._dictionary(tmp_path))["dictionary"].startswith("Ape")
    (tmp_path / "data.noun").write_text("  1 licence\n01 04 n 02 big_ape 0 ape 1 000 | a beast  \n")
    assert list(kinds._wordnet(tmp_path)) == [("wordnet", "big ape, ape: a beast")]
    service = tmp_path / "botocore/data/sagemaker/2020-01-01/service-2.json"
    service.parent.mkdir(parents=True)
    fields = {"Name": {"documentation": "<p>Its name.</p>"}}
    operation = {"name": "Begin", "documentation": "<p>Begins it.</p>", "input": {"shape": "S"}}
    service.write_text(json.dumps({"shapes": {"S": {"members": fields}}, "operations": {"Begin": operation}}))
    [(source, text)] = kinds._cloud(tmp_path)
    assert source == "cloud-learning" and text.split() == "Begin Begins it. Name: Its name.".split()


def test_every_specialist_set_is_a_source_of_some_kind():
    assert len(kinds.NEAR) >= 6 and len(kinds.FAR) >= 6
    names = {kind.name for kind in kinds.KINDS}
    assert set(kinds.FAR) <= names
    assert len(names - set(kinds.FAR) - set(kinds.NEAR)) >= 12
    assert {kind.package for kind in kinds.KINDS} <= packages.PACKAGES.keys()


def test_a_package_that_cannot_be_had_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="wordnet-base comes from deb"):
        packages.unpacked(packages.PACKAGES["wordnet-base"], tmp_path)


def test_a_kind_is_written_once_and_bounded(tmp_path, monkeypatch):
    reads = []

    def documents(folder):
        reads.append(folder)
        yield from (("dictionary", f"{number} " * 200) for number in range(100))
        yield from (("dictionary-qr", f"{number} " * 200) for number in range(100))
        yield "dictionary", "short"

    monkeypatch.setattr(corpus, "unpacked", lambda package, folder: folder)
    monkeypatch.setattr(corpus, "version", lambda package, folder: "1")
    monkeypatch.setattr(corpus, "MOST_KEPT_OUT", 1000)
    kind = kinds.Kind("dictionary", "dict-gcide", documents)
    facts = corpus.write(kind, tmp_path)
    assert facts == corpus.write(kind, tmp_path) and len(reads) == 1
    rows = [json.loads(row) for row in (tmp_path / "corpus/dictionary.jsonl").read_text().splitlines()]
    assert facts["sources"]["dictionary"]["documents"] == 100
    assert 1 <= facts["sources"]["dictionary-qr"]["documents"] == len(rows) - 100 < 10
    assert all(len(row["text"]) >= corpus.FEWEST_CHARACTERS for row in rows)


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.setenv("SOE_HOME", str(tmp_path))
    monkeypatch.setattr(
        sets, "embed_texts", lambda embedder, texts: np.eye(2)[[int("b" in text) for text in texts]]
    )
    store = tmp_path / "stores/worth"
    texts = {letter: [f"{letter} {number} " * 30 for number in range(20)] for letter in ("a a", "b b")}
    write_texts(store, [*texts.values()])

    def load(store: str, length: int):
        opened = DomainStore(store_folder(store))
        tokenizer = load_tokenizer(store_folder(store) / "tokenizer" / "tokenizer.json")
        windows = {
            name: torch.from_numpy(tokenizer.encode_windows(some, length))[:4]
            for name, some in (("databases", texts["b b"]), (sets.GENERIC, texts["a a"]))
        }
        one = SpecialistSet(name="databases", texts=texts["b b"][:8], evaluation=[])
        found = sets.assign_to_domains(sets.embed_texts(None, one.texts), opened.tree)
        return sets.Sets(
            [one], [found], windows, opened.tree.generic_weights, tokenizer, embedder=None, tree=opened.tree
        )

    monkeypatch.setattr(training, "load_sets", load)
    return Pretrain(
        name="run", store="worth", steps=6, batch_size=4, sequence_length=16, mixtures_per_step=2,
        support_size=2, num_experts=2, warmup_steps=0,
    )  # fmt: skip


def test_a_run_that_was_cut_off_ends_as_one_that_was_not(settings, tmp_path):
    whole = training.train(settings, tmp_path / "whole", points=2, until=time.time() + 600)
    assert training.train(settings, tmp_path / "cut", points=2, until=0) is None
    for _ in range(6):
        cut = training.train(settings, tmp_path / "cut", points=2, until=0)
    assert [row["step"] for row in cut["curve"]] == [3, 6]
    assert [row["losses"] for row in cut["curve"]] == [row["losses"] for row in whole["curve"]]
    assert json.loads((tmp_path / "cut" / training.CURVE).read_text()) == cut
    assert len(list((tmp_path / "cut").glob("step-*"))) == 1


def test_an_unfinished_soup_is_measured_as_the_product_would(settings, tmp_path):
    """Each method's instance is the one that its domain weights make; a twin has one."""
    soup = training.train(settings, tmp_path / "soup", points=1, until=time.time() + 600)
    row = soup["curve"][-1]["losses"]["databases"]
    assert len(row["blended"]) == 4 and row["share"] in (0, 0.25, 0.5, 0.75, 1)
    assert row["nearest-centroids"] != row["generic"]
    if row["share"] in (0, 1):
        assert row["blended"] == row["nearest-centroids" if row["share"] else "generic"]
    twin = settings.model_copy(update={"method": "generic", "name": "twin"})
    row = training.train(twin, tmp_path / "twin", points=1, until=time.time() + 600)["curve"][-1]
    assert row["losses"]["databases"]["blended"] == row["losses"]["databases"]["generic"]


def curve(name: str, seed: int, gain: float, rate: float) -> dict:
    """A run as `train` leaves it: losses fall with the logarithm of tokens."""
    rows = []
    for step in (10, 20, 40):
        loss = 5 - float(np.log(step)) / 10
        of_set = {"blended": [loss - gain], "nearest-centroids": [loss], "generic": [loss]}
        losses = {"databases": of_set, "recipes": of_set, "perl": of_set, "generic": of_set}
        rows.append({"step": step, "seconds": step / rate, "losses": losses})
    method = "generic" if name == "twin" else "soup"
    return {
        "settings": {"name": f"{name}-{seed}", "method": method, "seed": seed},
        "parts": {"databases": "near", "recipes": "far", "perl": "seen", "generic": "generic"},
        "parameters": 1000, "steps": 40, "tokens_per_step": 100, "curve": rows,
    }  # fmt: skip


def test_the_report_compares_at_equal_tokens_and_at_equal_time(tmp_path):
    for seed in (0, 1):
        for name, gain, rate in (("twin", 0, 2.0), ("soup", 0.1 + seed / 10, 1.0)):
            place = tmp_path / "runs" / f"{name}-{seed}" / training.CURVE
            place.parent.mkdir(parents=True)
            place.write_text(json.dumps(curve(name, seed, gain, rate)))
    found = report.report(tmp_path)["soup"]
    last = found["differences"]["blended"]["far"]["equal_tokens"][-1]
    assert last["at"] == 4000 and last["mean"] == pytest.approx(-0.15)
    assert last["spread"] == pytest.approx(np.std([0.1, 0.2], ddof=1))
    # At the soup's 20 steps the twin had 40: the loss of twice the tokens.
    timed = found["differences"]["blended"]["far"]["equal_time"]
    assert timed[1]["mean"] == pytest.approx(-0.15 + np.log(2) / 10)
    assert timed[2] is None  # the twin was not trained so long
    assert found["specialists_over_generic"]["far"]["worst"] == pytest.approx(-0.1)
    assert found["tokens_to_reach_the_twin"]["far"] == pytest.approx([4000 / np.e, 1000])
    assert (tmp_path / "report.json").exists() and (tmp_path / "report.png").stat().st_size > 5000
    assert "| far " in (tmp_path / "report.md").read_text()


def test_a_crisp_run_is_of_its_set_and_no_twin(settings, tmp_path):
    fixed = crisp.crisp_settings("databases", training.load_sets("worth", 16), tmp_path / "mixtures")
    shape = settings.model_dump(include={"store", "steps", "batch_size", "sequence_length", "warmup_steps"})
    own = Pretrain(**shape, **fixed, name="own-0")
    runs = [training.train(own, tmp_path / "runs/own-0", points=1, until=time.time() + 600)]
    assert len(runs[0]["curve"][-1]["losses"]["databases"]["blended"]) == 4
    with pytest.raises(UserError, match="no set 'perl'; there are databases"):
        crisp.crisp_settings("perl", training.load_sets("worth", 16), tmp_path / "mixtures")
    for name, gain in (("twin", 0), ("soup", 0.1), ("own", 0.4)):
        run = curve(name, 0, gain, 1.0)
        if name == "own":
            run["settings"] |= fixed
        (tmp_path / "runs" / f"{name}-0").mkdir(parents=True, exist_ok=True)
        (tmp_path / "runs" / f"{name}-0" / training.CURVE).write_text(json.dumps(run))
    [row] = report.report(tmp_path)["soup"]["crisp"]
    assert row["set"] == "databases" and row["twin"] - row["crisp"] == pytest.approx(0.4)
    assert re.search(r"\| databases \| near \| 0 \|.*\| 25% \|", (tmp_path / "report.md").read_text())


@pytest.fixture
def package(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(packaging, "load_sets", training.load_sets)
    facts = packaging.write_package("worth", tmp_path / "package", 16)
    assert facts["share"] == 1 and facts["parts"] == {"databases": "near", "generic": "generic"}
    return packaged_training.Package.open(tmp_path / "package")


def packaged(folder, *more: str):
    asked = ["--package", "", "--out", str(folder), "--preset", "tiny", "--points", "2", *more]
    sizes = {"steps": 14, "batch_size": 4, "mixtures_per_step": 2, "support_size": 2, "warmup_steps": 0}
    asked += ["--training", json.dumps(sizes), "--soup", json.dumps({"num_experts": 2}), "--device", "cpu"]
    return packaged_training.parse(asked)


def test_a_packaged_run_goes_on_where_it_was_cut_off(package, tmp_path):
    whole = packaged_training.train(package, packaged(tmp_path / "whole"))
    assert packaged_training.train(package, packaged(tmp_path / "cut", "--minutes", "0")) is None
    cut = packaged_training.train(package, packaged(tmp_path / "cut"))
    assert [row["step"] for row in cut["curve"]] == [7, 14]
    assert [row["losses"] for row in cut["curve"]] == [row["losses"] for row in whole["curve"]]
    of_set = cut["curve"][-1]["losses"]["databases"]
    assert len(set(of_set["losses"])) == 5
    assert of_set["chosen"] == of_set["losses"][packaged_training.SHARES.index(of_set["share"])]
    twin = packaged_training.train(package, packaged(tmp_path / "twin", "--method", "generic"))
    assert twin["num_experts"] == 0 and len(twin["curve"][-1]["losses"]["databases"]["losses"]) == 1


def test_a_package_has_the_stores_windows_domain_by_domain_and_no_more_bytes_than_allowed(package, tmp_path):
    store = DomainStore(store_folder("worth"))
    windows_K = store.windows_K(16)
    assert (package.arrays["windows_K"] == windows_K).all()
    last = package.tokens(np.array([1]), windows_K[1:] - 1)[0]
    at = (windows_K[1] - 1) * 16
    assert last.tolist() == store.volumes[0].tokens(1)[at : at + 17].tolist()
    allowed = (1 << 20) + sum(array.nbytes for array in package.arrays.values()) + 34 * 20
    facts = packaging.write_package("worth", tmp_path / "small", 16, allowed)
    assert 0 < facts["tokens"] <= 22 * 16 < windows_K.sum() * 16
    with pytest.raises(UserError, match="the sets of worth alone take"):
        packaging.write_package("worth", tmp_path / "none", 16, 1000)


def test_a_packaged_run_needs_torch_transformers_and_numpy_only():
    code = (
        "import sys; import tests.benchmarks.worth.packaged_training; "
        "print(*{'flows', 'ray', 'polars', 'pyarrow', 'pydantic', 'faiss', 'prefect'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
