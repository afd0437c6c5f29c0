"""`soe weights`: texts' domain weights as a table of one mixture, on a store built with the real embedder."""

import json

import numpy as np
import pytest

from flows.cli.main import main
from pipeline.mixtures.ratios import read_fixed, read_table
from storage_schema.domains import DomainStore
from tests.flows.built_store import TOPICS


@pytest.mark.parametrize("rule", ["flat", "tree"])
def test_texts_on_pets_fall_into_the_domains_of_pets(built, settings, tmp_path, capsys, rule):
    for number in range(6):
        (tmp_path / f"{number}.txt").write_text(f"{TOPICS['pets']} {number}")
    out = tmp_path / "h.csv"
    assert main(["weights", settings.store, "--texts", str(tmp_path), "--rule", rule, "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "6 passages in" in said.out and "Only 6 texts chose the domain weights" in said.err
    store = DomainStore(settings.store)
    weights_K = read_fixed(out, store.num_domains).weights_K
    assert weights_K.sum() == pytest.approx(1)
    for domain in np.flatnonzero(weights_K):
        assert set(store.passages(domain)["source"].to_pylist()) == {"pets"}


def test_the_texts_may_lie_in_another_field(built, settings, tmp_path, capsys):
    lines = [json.dumps({"content": f"{TOPICS['pets']} {number}"}) for number in range(3)]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    command = ["weights", settings.store, "--texts", str(tmp_path / "texts.jsonl"), "--text-field", "content"]
    assert main([*command, "--out", str(tmp_path / "h.csv")]) == 0
    assert "3 passages in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("stem", "row"), [("my mixture", "my mixture"), ('a,"b"', "a--b-"), ("Größe", "Größe")]
)
def test_the_table_may_have_any_name(built, settings, tmp_path, stem, row):
    (tmp_path / "texts.txt").write_text(TOPICS["pets"])
    out = tmp_path / f"{stem}.csv"
    command = ["weights", settings.store, "--texts", str(tmp_path / "texts.txt"), "--out", str(out)]
    assert main(command) == 0
    assert read_table(out)[0] == [row]


def test_what_cannot_be_weighed_is_said_in_a_line(built, settings, tmp_path, capsys):
    (tmp_path / "empty.txt").write_text(" ")
    assert main(["weights", settings.store, "--texts", str(tmp_path), "--out", str(tmp_path / "h.csv")]) == 1
    assert main(["weights", "nowhere", "--texts", str(tmp_path), "--out", str(tmp_path / "h.csv")]) == 1
    said = capsys.readouterr().err
    assert "error: specialist set texts: no text in" in said and "error: no " in said
    assert not (tmp_path / "h.csv").exists()
