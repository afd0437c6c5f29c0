"""Texts of every kind that a specialist is asked for: few, far, none, enormous, binary, all of one domain."""

from __future__ import annotations

import json

import pytest

from flows.jobs import specialize as job
from flows.settings import Specialize
from storage_schema.manifest import read_manifest
from tests.flows.cli.specialist_commands import run
from tests.served_soup import sentences


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


def test_the_texts_may_lie_in_another_field(soup, tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text(json.dumps({"content": sentences("music", 1)[0]}))
    given = "--texts", tmp_path / "a.jsonl", "--text-field", "content", "--out", tmp_path / "out"
    assert run("specialize", soup, *given) == 0
    assert "Only one text chose the domain weights" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"  \n \n", "no text in"), (b"\x00\xe8\xff" * 50, "not UTF-8")],
)
def test_texts_that_are_none_are_refused(soup, tmp_path, content, message, capsys):
    (tmp_path / "bad.txt").write_bytes(content)
    assert run("specialize", soup, "--texts", tmp_path / "bad.txt", "--out", tmp_path / "out") == 1
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"\0" * 5000, "a text of words".encode("utf-16-le")])
def test_binary_texts_that_are_utf8_are_refused(soup, tmp_path, content, capsys):
    (tmp_path / "a.txt").write_bytes(content)
    assert run("specialize", soup, "--texts", tmp_path / "a.txt", "--out", tmp_path / "out") == 1
    assert "holds zero bytes: it is binary, or UTF-16" in capsys.readouterr().err


def test_of_enormous_texts_a_bounded_part_of_every_file_is_read(soup, tmp_path):
    for name, topic in (("a", "law"), ("b", "music")):
        body = "\n\n".join(f"{sentence} {n}" for n in range(20_000) for sentence in sentences(topic, 2))
        (tmp_path / f"{name}.txt").write_text(body)
    [read] = job.read_sets(Specialize(texts={"big": str(tmp_path)}, max_texts=60))
    assert len(read.texts) == 60 and len(read.evaluation) == 22
    assert sum("court" in text for text in read.texts) in range(20, 41)
    assert not set(read.texts) & set(read.evaluation)


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
