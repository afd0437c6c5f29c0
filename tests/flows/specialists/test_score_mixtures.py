"""The two tables of `soe score`, as Olmix's loader reads them, and mixtures that nothing could be joined by."""

import json

import numpy as np
import polars as pl
import pytest

from flows.cli.main import main
from flows.specialists import score_mixtures as scoring
from flows.specialists.score_mixtures import score_mixtures
from tests.served_soup import make_served_soup, sentences

THIRD = 1 / 3


@pytest.fixture(scope="module")
def soup(tmp_path_factory):
    return make_served_soup(tmp_path_factory.mktemp("home") / "soups" / "small", steps=1)


@pytest.fixture
def scored(soup, tmp_path):
    """Scores the mixtures of a table's text; returns the two tables."""
    (tmp_path / "law.txt").write_text("\n\n".join(sentences("law", 3)))

    def score(content, name="law"):
        (tmp_path / "given.csv").write_text(content)
        out = tmp_path / "out"
        found = score_mixtures(str(soup), tmp_path / "given.csv", {name: str(tmp_path / "law.txt")}, out)
        tables = [pl.read_csv(out / file, infer_schema=False) for file in ("ratios.csv", "metrics.csv")]
        assert tables[1].columns == found.columns
        return tables

    return score


@pytest.mark.parametrize(
    ("head", "start", "runs"),
    [
        ("run,", ["a,", "b,"], ["a", "b"]),
        ("run_id,", ["007,", "1e3,"], ["007", "1e3"]),
        ("index,run,name,", ["0,a,x,", '1,"b,c",x,'], ["a", "b,c"]),
        ("", ["", ""], ["0", "1"]),
    ],
)
def test_both_tables_have_the_names_of_the_runs(scored, head, start, runs):
    rows = [f"{start[0]}1,0", f"{start[1]}{THIRD},{1 - THIRD}"]
    ratios, metrics = scored("\n".join([f"{head}domain_5,domain_0002", *rows]) + "\n")
    assert ratios.columns == ["run", "domain_0005", "domain_0002"] and metrics.columns == ["run", "law"]
    assert ratios["run"].to_list() == metrics["run"].to_list() == runs
    weights = ratios.drop("run").cast(pl.Float64).to_numpy()
    assert np.array_equal(weights, [[1, 0], [THIRD, 1 - THIRD]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("run,domain_0001\na,1\nb,1\nb,1\n", "has 2 runs 'b': names .* join .* Give each run its own"),
        ("run,domain_0001\na,1\n,1\n", "has row 1 without a name"),
        ("name,domain_0001\na,1\nb,1\n", r"has row 0 without a name: names \(column run or run_id\)"),
        ("run,loss,domain_0001\na,2,1\n", r"\['loss'\] besides"),
    ],
)
def test_runs_that_nothing_joins_are_refused(scored, tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        scored(content)
    assert not (tmp_path / "out").exists()


def test_the_command_takes_the_field_it_is_told_and_says_how_texts_were_taken(soup, tmp_path, capsys):
    given = tmp_path / "given"
    given.mkdir()
    lines = [json.dumps({"content": text}) for text in sentences("law", 30)]
    (given / "a.jsonl").write_text("\n".join(lines))
    (given / "b.tsv").write_text("no text")
    (tmp_path / "m.csv").write_text("run,domain_0001\na,1\n")
    options = ["--mixtures", tmp_path / "m.csv", "--texts", f"law={given}", "--out", tmp_path / "out"]
    assert main(["score", str(soup), *map(str, options), "--text-field", "content"]) == 0
    assert "law: Files of the texts that were not read: 1 .tsv." in capsys.readouterr().err


@pytest.mark.parametrize("name", ["run", "run_id", "name", "index"])
def test_texts_are_not_named_as_a_column_that_is_no_loss(scored, monkeypatch, name):
    monkeypatch.setattr(scoring, "SoupOfExperts", None)  # it is seen before anything is opened
    with pytest.raises(ValueError, match=f"texts are named '{name}'.* Choose another name"):
        scored("run,domain_0001\na,1\n", name)
