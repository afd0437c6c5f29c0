"""The benchmark of what a soup is worth, in small: its runs go on where they were cut off."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from flows.settings import Pretrain
from pipeline.specialists.sets import SpecialistSet
from pipeline.tokenizer import load_tokenizer
from soe_model.specialists.refining import LOOKS
from storage_schema.domains import DomainStore
from storage_schema.errors import UserError
from storage_schema.layout import store_folder
from tests.benchmarks.worth import crisp, packaged_training, report, sets, training
from tests.benchmarks.worth import package as packaging
from tests.toy_store import write_texts


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
    assert len(row["refined"]) == 4 and row["steps"] in (0, *LOOKS)
    assert (row["refined"] == row["blended"]) == (row["steps"] == 0)
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
    assert found["default"] == "blended"  # runs of before have no other
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
    said = (tmp_path / "report.md").read_text()
    [head] = [line for line in said.splitlines() if line.startswith("| sets ")]
    columns = head.split(" | ")
    assert "| far " in said and len(set(columns)) == len(columns)


def test_a_crisp_run_is_of_its_set_and_no_twin(settings, tmp_path):
    fixed = crisp.crisp_settings("databases", training.load_sets("worth", 16), tmp_path / "mixtures")
    shape = settings.model_dump(include={"store", "steps", "batch_size", "sequence_length", "warmup_steps"})
    own = Pretrain(**shape, **fixed, name="own-0")
    runs = [training.train(own, tmp_path / "runs/own-0", points=1, until=time.time() + 600)]
    assert len(runs[0]["curve"][-1]["losses"]["databases"]["blended"]) == 4
    with pytest.raises(UserError, match="no set 'perl'; there are databases"):
        crisp.crisp_settings("perl", training.load_sets("worth", 16), tmp_path / "mixtures")
    loaded = training.load_sets("worth", 16)
    loaded.generic_K[-1] = 0  # an empty domain
    uniform = crisp.crisp_settings("uniform", loaded, tmp_path / "mixtures")
    weights = [float(one) for one in Path(uniform["ratios"]).read_text().split("uniform,")[1].split(",")]
    assert weights == pytest.approx([1 / (len(loaded.generic_K) - 1)] * (len(loaded.generic_K) - 1))
    for name, gain in (("twin", 0), ("soup", 0.1), ("own", 0.4), ("uniform", 0.3)):
        run = curve(name, 0, gain, 1.0)
        run["settings"] |= {"own": fixed, "uniform": uniform}.get(name, {})
        if name == "uniform":
            for of_set in run["curve"][-1]["losses"].values():
                of_set["generic"] = of_set["blended"]
        (tmp_path / "runs" / f"{name}-0").mkdir(parents=True, exist_ok=True)
        (tmp_path / "runs" / f"{name}-0" / training.CURVE).write_text(json.dumps(run))
    [row] = report.report(tmp_path)["soup"]["crisp"]
    assert row["set"] == "databases" and row["twin"] - row["crisp"] == pytest.approx(0.4)
    said = (tmp_path / "report.md").read_text()
    assert re.search(r"\| databases \| near \| 0 \|.*\| 25% \|", said)
    assert "Uniform twin, seeds 0" in said and "| near | -0.300 |" in said


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
    mixed = "--support", "1", "2"
    whole = packaged_training.train(package, packaged(tmp_path / "whole", *mixed))
    assert packaged_training.train(package, packaged(tmp_path / "cut", "--minutes", "0", *mixed)) is None
    cut = packaged_training.train(package, packaged(tmp_path / "cut", *mixed))
    assert [row["step"] for row in cut["curve"]] == [7, 14]
    assert [row["losses"] for row in cut["curve"]] == [row["losses"] for row in whole["curve"]]
    (tmp_path / "cut" / "curve.json").unlink()
    again = packaged_training.train(package, packaged(tmp_path / "cut", *mixed))
    assert again == cut == json.loads((tmp_path / "cut" / "curve.json").read_text())
    of_set = cut["curve"][-1]["losses"]["databases"]
    assert len(set(of_set["losses"])) == 5
    assert of_set["chosen"] == of_set["losses"][packaged_training.SHARES.index(of_set["share"])]
    laws = whole["training"]["meta_distribution"]["laws"]
    assert {law["of"]["support_size"]: law["share"] for law in laws} == {1: 0.5, 2: 0.5}
    plain = packaged_training.train(package, packaged(tmp_path / "plain"))
    assert plain["curve"][-1]["losses"] != whole["curve"][-1]["losses"]
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
    assert sum(path.stat().st_size for path in (tmp_path / "small").iterdir()) <= allowed
    with pytest.raises(UserError, match="the sets of worth alone take"):
        packaging.write_package("worth", tmp_path / "none", 16, 1000)


def test_a_packaged_run_needs_torch_transformers_and_numpy_only():
    code = (
        "import sys; import tests.benchmarks.worth.packaged_training; "
        "print(*{'flows', 'ray', 'polars', 'pyarrow', 'pydantic', 'faiss', 'prefect'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
