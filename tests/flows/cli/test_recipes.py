"""What is made of finished specialists: the same model again, blends, and tables of scores."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

from flows.jobs import specialize as job
from flows.settings import Specialize
from flows.specialists.losses import LossMeter
from soe_model.files.soup import SoupOfExperts
from storage_schema.manifest import read_manifest
from tests.flows.cli.specialist_commands import ALGORITHM_3, run, tensors
from tests.served_soup import sentences


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
