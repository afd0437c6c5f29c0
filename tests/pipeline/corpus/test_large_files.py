"""No task has more than a bounded share of a corpus, and where a file is cut changes nothing that is stored."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.corpus import large_files
from pipeline.corpus.accounts import Losses
from pipeline.corpus.listing import open_corpus
from pipeline.corpus.readers import read_documents
from pipeline.passages import build as passages
from pipeline.passages import overlap
from pipeline.passages.build import build_passages, write_part
from pipeline.passages.extraction import EXTRACTED
from pipeline.passages.parts import Part
from pipeline.passages.selection import Selection
from pipeline.places import locations as places
from storage_schema.corpus import part_files
from storage_schema.stage import open_stage


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """Tasks run here and now."""

    def run_tasks(function, arguments, *, report=None, weights=None):
        return [function(*one) for one in arguments]

    for module in (passages, large_files):
        monkeypatch.setattr(module, "run_tasks", run_tasks)


def hostile_lines(generator, number):
    """Lines of every length, blank and bad ones, of several bytes a character; without an end of line at the end."""
    lines = [json.dumps({"text": f"the first {number}"})]
    for _ in range(generator.randrange(40)):
        text = "é" * generator.choice([0, 1, 9, 300]) + str(generator.random())
        good = json.dumps({"text": text}, ensure_ascii=False)
        lines.append(generator.choice([good, good, good, "", "{broken", '{"text": 3}', "\r"]))
    return "\n".join(lines) + generator.choice(["", "\n", "\n\n"])


def read(corpus, files):
    return [document for file in files for document in read_documents(corpus, file)]


def pieces_of(corpus, size, folder):
    groups = large_files.bounded_groups(corpus, size, folder / f"pieces-{size}.json")
    again = large_files.bounded_groups(corpus, size, folder / f"pieces-{size}.json")
    assert groups == again
    return [file for _, files in groups for file in files]


def test_pieces_of_lines_are_the_documents_of_the_whole(tmp_path):
    generator = random.Random(0)
    (tmp_path / "corpus").mkdir()
    for number in range(30):
        (tmp_path / "corpus" / f"{number:02d}.jsonl").write_text(hostile_lines(generator, number))
    corpus = open_corpus(str(tmp_path / "corpus"))
    whole, counts = read(corpus, corpus.files), []
    for size in (7, 40, 350, 100_000):
        pieces = pieces_of(corpus, size, tmp_path)
        assert read(corpus, pieces) == whole
        counts.append(len(pieces))
    assert counts == sorted(counts, reverse=True) and counts[0] > 500 and counts[-1] == 30


def test_pieces_of_parquet_are_whole_row_groups(tmp_path):
    table = pa.table({"text": [f"row {number} " * 20 for number in range(1000)]})
    pq.write_table(table, tmp_path / "c.parquet", row_group_size=90, compression="none", use_dictionary=False)
    corpus = open_corpus(str(tmp_path / "c.parquet"))
    for size, number in ((1, 12), (50_000, 4), (10**6, 1)):
        pieces = pieces_of(corpus, size, tmp_path)
        assert len(pieces) == number
        assert read(corpus, pieces) == read(corpus, corpus.files)
        assert sum(piece.bytes for piece in pieces) <= corpus.files[0].bytes


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.json", json.dumps([{"text": "a" * 50}] * 9, indent=1).encode()),
        ("object.json", json.dumps({"text": ["a" * 50] * 9}, indent=1).encode()),
        ("utf16.jsonl", ('{"text": "a"}\n' * 50).encode("utf-16")),
        ("packed.jsonl.gz", b"no gzip" * 99),
        ("broken.parquet", b"no parquet" * 99),
        ("long.txt", b"one text\n" * 99),
    ],
)
def test_what_has_no_known_places_stays_whole(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    corpus = open_corpus(str(tmp_path / name))
    assert pieces_of(corpus, 100, tmp_path) == list(corpus.files)


_ALL = Selection()


def build(folder, corpus, selection=_ALL):
    stage = open_stage(folder / "passages", kind="passages", configuration={}, inputs={})
    return build_passages(stage, corpus, selection, passage_characters=100, max_bad_documents=10**6)


def test_a_store_does_not_depend_on_the_cut(tmp_path, monkeypatch):
    generator = random.Random(1)
    (tmp_path / "corpus").mkdir()
    for number in range(3):
        lines = [hostile_lines(generator, number), *(f'{{"text": "{i} and {number}"}}' for i in range(2000))]
        (tmp_path / "corpus" / f"{number}.jsonl").write_text("\n".join(lines))
    corpus = open_corpus(str(tmp_path / "corpus"))
    written = []
    for factor in (1, 7):  # each file is a group, with one piece and with several
        monkeypatch.setattr(passages, "GROUP_BYTES", max(file.bytes for file in corpus.files) // factor)
        written.append(build(tmp_path / str(factor), corpus))
    assert len(part_files(tmp_path / "1" / "passages", "train")) > 10
    assert written[0].digest == written[1].digest


def overlapping(generator):
    """Texts of several passages, some in both splits and cut at other places there; some twice, blank or bad."""
    words = [f"{number:x}" for number in range(256, 4096)]
    texts = [" ".join(generator.choices(words, k=generator.randrange(3, 150))) for _ in range(12)]
    texts += [f"One line more.\n{text}" for text in texts[:10]] + texts[:2] + [" ", ""]
    rows = [{"text": text, "source": "b" if 12 <= at < 22 else "a"} for at, text in enumerate(texts)]
    generator.shuffle(rows)
    return rows


@pytest.mark.parametrize("name", ["c.jsonl", "c.parquet"])
def test_a_store_is_the_same_down_to_one_line_or_row_group_per_task(tmp_path, monkeypatch, name):
    monkeypatch.setattr(overlap, "BATCH", 3)
    generator = random.Random(2)
    rows = overlapping(generator)
    if name == "c.parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name, row_group_size=2, compression="none")
    else:
        lines = [json.dumps(row) + generator.choice(["\n", "\n", "\n{broken\n", "\n\n"]) for row in rows]
        (tmp_path / name).write_text("".join(lines))
    corpus = open_corpus(str(tmp_path / name))
    selection = Selection(held_out_sources=("b",), held_out_fraction=0.1)
    numbers, digests = set(), set()
    for number, size in enumerate([10, 10**9, *(generator.randrange(100, 2000) for _ in range(2))]):
        monkeypatch.setattr(passages, "GROUP_BYTES", size)
        numbers.add(len(large_files.bounded_groups(corpus, size, tmp_path / f"{number}.json")))
        counts = (written := build(tmp_path / str(number), corpus, selection)).counts
        digests.add(written.digest)
        assert counts["documents_read"] == sum(counts["documents_by_outcome"].values()) >= len(rows)
        assert counts["passages_cut"] == sum(counts["passages_by_outcome"].values())
    assert len(digests) == 1 and min(numbers) == 1 and max(numbers) >= len(rows) // 2 and len(numbers) > 2
    assert counts["passages_by_outcome"]["held out, but mostly in training text"] > 5


def test_a_part_takes_the_memory_of_its_rows_not_of_its_shards(tmp_path):
    groups, rows, length = 40, 100, 10_000
    columns = {"document_id": ["d"] * rows, "source": ["s"] * rows, "text": ["x" * length] * rows}
    hashes = {name: np.arange(rows, dtype=np.uint64) for name in ("document_hash", "text_hash")}
    table = pa.table({**columns, **hashes}).cast(EXTRACTED)
    with pq.ParquetWriter(tmp_path / "shard", EXTRACTED, compression="zstd") as writer:
        for _ in range(groups):
            writer.write_table(table)
    decided = np.zeros(groups * rows, np.uint8)
    decided[1500:1510] = 1
    decided.tofile(tmp_path / "decisions")
    part = Part(split="train", number=3, shards=[(0, 0, len(decided))], skip=0, rows=10)
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    pa.set_memory_pool(pool)
    try:
        path = tmp_path / "part.parquet"
        assert write_part(part, tmp_path / "decisions", [(tmp_path / "shard", 0)], path) == 10 * length
    finally:
        pa.set_memory_pool(before)
    assert pool.max_memory() < groups * rows * length / 4
    written = pq.read_table(path)
    assert written["passage_id"].to_pylist() == [(3 << 32) + row for row in range(10)]
    assert written["text_hash"].to_pylist() == list(range(10))
    part = replace(part, rows=0, shards=[])
    assert write_part(part, tmp_path / "decisions", [], path) == 10 * length  # it is there


def test_bad_documents_do_not_end_a_row_group(tmp_path):
    lines = [f'{{"text": "{number}"}}\n{{broken\n' for number in range(50)]
    (tmp_path / "c.jsonl").write_text("".join(lines))
    shard = tmp_path / "shard.parquet"
    summary = passages.extract_group(
        open_corpus(str(tmp_path / "c.jsonl")),
        str(shard),
        100,
        Losses(max_bad_documents=50, max_damaged_files=0),
    )
    assert summary.bad_documents == 50 and pq.read_metadata(shard).num_row_groups == 1
    given_up = passages.extract_group(
        open_corpus(str(tmp_path / "c.jsonl")),
        str(tmp_path / "no"),
        100,
        Losses(max_bad_documents=5, max_damaged_files=0),
    )
    assert given_up.bad_documents == 6 and not (tmp_path / "no").exists()


def test_a_read_that_fails_once_leaves_no_large_file_whole(tmp_path, monkeypatch):
    (tmp_path / "c.jsonl").write_text('{"text": "a line"}\n' * 100)
    corpus = open_corpus(str(tmp_path / "c.jsonl"))
    opened = []

    def open_filesystem(uri):
        opened.append(uri)
        if len(opened) == 1:
            raise OSError("503 Slow Down")
        return places.open_filesystem(uri)

    monkeypatch.setattr(large_files, "open_filesystem", open_filesystem)
    assert len(pieces_of(corpus, 500, tmp_path)) == 4 and len(opened) > 1
