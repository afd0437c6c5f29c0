from __future__ import annotations

import json
import random

import polars as pl
import pytest

from pipeline.corpus.listing import open_corpus
from pipeline.passages.build import build_passages
from pipeline.passages.cutting import cut_passages
from pipeline.passages.selection import Selection
from storage_schema.corpus import PASSAGES, part_files
from storage_schema.stage import open_stage


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def documents(number, sources=("a", "b", "c")):
    return [
        {"text": f"document {i} says {i * 7}", "source": sources[i % len(sources)]} for i in range(number)
    ]


def build(folder, corpus, *, characters=2000, max_bad=0, **selection):
    stage = open_stage(folder / "passages", kind="passages", configuration={"test": 1}, inputs={})
    opened = open_corpus(str(corpus))
    return build_passages(
        stage, opened, Selection(**selection), passage_characters=characters, max_bad_documents=max_bad
    )


def read(folder, split):
    return pl.read_parquet(part_files(folder / "passages", split))


def test_cutting_never_loses_text_and_prefers_paragraphs():
    generator = random.Random(0)
    for _ in range(300):
        pieces = ["word"] * 6 + [" "] * 5 + ["\n", "\n\n", "é", "x" * generator.randrange(1, 90)]
        text = "".join(generator.choices(pieces, k=generator.randrange(200)))
        limit = generator.randrange(64, 200)
        passages = cut_passages(text, limit)
        assert "".join(passages) == text
        assert all(0 < len(passage) <= limit for passage in passages)
        assert all(len(passage) >= limit // 8 for passage in passages) or len(passages) == 1
    first = "one " * 15 + "\n\n"
    assert cut_passages(first + "two " * 20, 100)[0] == first
    assert cut_passages("y" * 250, 100) == ["y" * 100, "y" * 75, "y" * 75]


def test_passages_rebuild_the_documents(ray_cluster, tmp_path):
    records = [{"text": f"{i}: " + f"some words of {i}. " * 30, "source": "s"} for i in range(20)]
    write_lines(tmp_path / "c.jsonl", records)
    manifest = build(tmp_path, tmp_path / "c.jsonl", characters=100, held_out_fraction=0.3)
    train, held_out = read(tmp_path, "train"), read(tmp_path, "held_out")
    texts = pl.concat([train, held_out]).group_by("document_id").agg(pl.col("text").sort_by("passage_id"))
    # Equal passages of a document are kept once, so each document is at least begun by its own first passage.
    assert len(texts) == 20
    assert all(any(text[0].startswith(f"{i}: ") for i in range(20)) for text in texts["text"].to_list())
    assert pl.concat([train, held_out])["passage_id"].n_unique() == len(train) + len(held_out)
    assert train.to_arrow().schema.names == PASSAGES.names
    assert manifest.counts["documents"] == 20
    assert manifest.counts["passages"] == len(train)
    assert manifest.counts["train_characters"] == train["text"].str.len_chars().sum()


def test_splits_by_source_and_fraction_share_no_document(ray_cluster, tmp_path):
    write_lines(tmp_path / "c.jsonl", documents(600))
    manifest = build(tmp_path, tmp_path / "c.jsonl", held_out_sources=("b",), held_out_fraction=0.2)
    train, held_out = read(tmp_path, "train"), read(tmp_path, "held_out")
    assert "b" not in set(train["source"])
    assert not set(train["document_id"]) & set(held_out["document_id"])
    assert 40 < len(held_out.filter(pl.col("source") != "b")) < 120
    sources = pl.read_parquet(tmp_path / "passages" / "sources.parquet")
    assert sources.filter("unseen")["source"].to_list() == ["b"]
    assert sources["train_passages"].sum() == len(train) == manifest.counts["passages"]
    assert sources["documents"].to_list() == [200, 200, 200]


def test_duplicates_go_and_nothing_held_out_was_seen(ray_cluster, tmp_path):
    records = [
        {"text": text, "source": source}
        for source, texts in {"seen": ["x", "y", "x", "z"], "kept": ["x", "q", "q", "r"]}.items()
        for text in texts
    ]
    write_lines(tmp_path / "c.jsonl", records)
    manifest = build(tmp_path, tmp_path / "c.jsonl", held_out_sources=("kept",), held_out_fraction=0)
    assert sorted(read(tmp_path, "train")["text"]) == ["x", "y", "z"]
    assert sorted(read(tmp_path, "held_out")["text"]) == ["q", "r"]
    assert manifest.counts["train_duplicates_dropped"] == 1
    assert manifest.counts["held_out_duplicates_dropped"] == 1
    assert manifest.counts["held_out_seen_in_training_dropped"] == 1


def test_a_text_with_a_byte_order_mark_is_its_twin_without(ray_cluster, tmp_path):
    (tmp_path / "c").mkdir()
    for n in range(20):
        for name, encoding in (("plain", "utf-8"), ("marked", "utf-8-sig")):
            (tmp_path / "c" / f"{n}-{name}.txt").write_text(f"text number {n}", encoding=encoding)
    counts = build(tmp_path, tmp_path / "c", held_out_fraction=0.3).counts
    kept = [*read(tmp_path, "train")["text"], *read(tmp_path, "held_out")["text"]]
    assert sorted(kept) == sorted(f"text number {n}" for n in range(20))
    dropped = ("train_duplicates", "held_out_duplicates", "held_out_seen_in_training")
    assert sum(counts.get(f"{what}_dropped", 0) for what in dropped) == 20


def test_limits_take_from_everywhere(ray_cluster, tmp_path):
    write_lines(tmp_path / "c.jsonl", documents(900))
    build(tmp_path / "p", tmp_path / "c.jsonl", max_passages=90, held_out_fraction=0)
    lines = read(tmp_path / "p", "train")["document_id"].str.split(":").list.get(1).cast(int)
    assert len(lines) == 90
    assert all(15 <= ((lines > third * 300) & (lines <= third * 300 + 300)).sum() <= 45 for third in range(3))
    manifest = build(tmp_path / "d", tmp_path / "c.jsonl", max_documents_per_source=10, held_out_fraction=0.5)
    sources = pl.read_parquet(tmp_path / "d" / "passages" / "sources.parquet")
    assert sources["documents"].to_list() == [10, 10, 10]
    assert 5 < manifest.counts["passages"] < 25


def test_unknown_held_out_source_lists_near_names(ray_cluster, tmp_path):
    write_lines(tmp_path / "c.jsonl", documents(30, sources=("networkx", "numpy")))
    with pytest.raises(ValueError, match="'netwrkx'.*Near names: networkx"):
        build(tmp_path, tmp_path / "c.jsonl", held_out_sources=("netwrkx",))


def test_nothing_left_to_train_on_is_an_error(ray_cluster, tmp_path):
    write_lines(tmp_path / "c.jsonl", documents(9, sources=("only",)))
    with pytest.raises(ValueError, match="no passage to train on"):
        build(tmp_path, tmp_path / "c.jsonl", held_out_sources=("only",))


def test_bad_documents_are_counted_up_to_a_bound_and_then_named(ray_cluster, tmp_path):
    good = [json.dumps(record) for record in documents(50)]
    good[10:10] = ['{"txt": 1}', '{"text": "broken', '{"txt": 2}']
    (tmp_path / "c.jsonl").write_text("\n".join(good))
    with pytest.raises(ValueError, match=r"max_bad_documents is 2.*c\.jsonl:11: .*c\.jsonl:12.*text_field"):
        build(tmp_path, tmp_path / "c.jsonl", max_bad=2)
    manifest = build(tmp_path, tmp_path / "c.jsonl", max_bad=3, held_out_fraction=0)
    assert manifest.counts["bad_documents"] == 3
    assert manifest.counts["passages"] == 50
    assert manifest.counts["bad_documents_named"][0].startswith("c.jsonl:11: ")


def test_progress_is_in_files_and_each_counts_once(ray_cluster, tmp_path):
    """It was cut and is to be written: then it is half done."""
    (tmp_path / "c").mkdir()
    for name in "abcd":
        write_lines(tmp_path / "c" / f"{name}.jsonl", documents(9))
    said = []
    stage = open_stage(tmp_path / "passages", kind="passages", configuration={}, inputs={})
    build_passages(
        stage, open_corpus(str(tmp_path / "c")), Selection(), passage_characters=2000, max_bad_documents=0,
        report=lambda done, total: said.append((done, total)),
    )  # fmt: skip
    assert said == sorted(said) and set(said) == {(2, 4), (4, 4)}


def test_resume_keeps_finished_shards_and_parts(ray_cluster, tmp_path, monkeypatch):
    write_lines(tmp_path / "c.jsonl", documents(300))
    whole = build(tmp_path / "whole", tmp_path / "c.jsonl")
    partial, folder = tmp_path / "again" / "passages.partial", tmp_path / "again" / "passages"

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    # The parts are written by other processes; this one fails at the table of sources, just before the end.
    monkeypatch.setattr("pipeline.passages.build.pq.write_table", full)
    with pytest.raises(OSError, match="No space left"):
        build(tmp_path / "again", tmp_path / "c.jsonl")
    monkeypatch.undo()
    assert not folder.exists() and len([*partial.rglob("shards-*/shard-*.parquet")]) == 1
    written = {path.name: path.stat().st_mtime_ns for path in partial.glob("train/part-*.parquet")}
    resumed = build(tmp_path / "again", tmp_path / "c.jsonl")
    assert resumed.digest == whole.digest
    assert written == {path.name: path.stat().st_mtime_ns for path in part_files(folder, "train")}
