from __future__ import annotations

import gzip
import json
import os
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pipeline.corpus.documents import BadDocument, Document
from pipeline.corpus.listing import open_corpus
from tests.toy_corpora import read_all

RECORDS = [{"text": f"text {i}", "source": f"s{i % 2}"} for i in range(5)]
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()


def test_json_lines_plain_gz_and_zst_hold_the_same_documents(tmp_path):
    packings = {"a.jsonl": LINES, "a.jsonl.gz": gzip.compress(LINES), "a.json.zst": zstandard.compress(LINES)}
    for name, content in packings.items():
        (tmp_path / name).write_bytes(content)
        found = read_all(tmp_path / name)
        assert [(document.text, document.source) for document in found] == [
            tuple(r.values()) for r in RECORDS
        ]
        assert [document.document_id for document in found] == [f"{name}:{line}" for line in range(1, 6)]


def test_parquet_and_other_field_names(tmp_path):
    pq.write_table(
        pa.table({"body": ["a", "b"], "site": ["x", None], "other": [1, 2]}), tmp_path / "p.parquet"
    )
    assert read_all(tmp_path / "p.parquet", text_field="body", source_field="site") == [
        Document("p.parquet:0", "x", "a"),
        Document("p.parquet:1", "p", "b"),
    ]
    [bad] = read_all(tmp_path / "p.parquet")
    assert bad.where == "p.parquet" and "'text'" in bad.problem and "body" in bad.problem


def test_folder_is_listed_in_order_with_sources(tmp_path):
    (tmp_path / "corpus" / "b").mkdir(parents=True)
    folder = tmp_path / "corpus"
    (folder / "b" / "x.txt").write_text("in b")
    (folder / "a.md").write_text("at the top")
    (folder / "lines.jsonl").write_text('{"text": "no source"}\n')
    (folder / "picture.png").write_bytes(b"\x89PNG")
    (folder / ".hidden.txt").write_text("hidden")
    (folder / "blank.txt").write_text("  \n")
    assert read_all(folder) == [
        Document("a.md", "corpus", "at the top"),
        Document("b/x.txt", "b", "in b"),
        Document("blank.txt", "corpus", "  \n"),
        Document("lines.jsonl:1", "lines", "no source"),
    ]
    assert read_all(folder.as_uri()) == read_all(folder)


def test_not_utf8_names_file_or_line_and_the_rest_is_read(tmp_path):
    (tmp_path / "latin.txt").write_bytes("naïve".encode("latin-1"))
    (tmp_path / "lines.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n{"text": "c"}\n')
    bad, first, second, third = read_all(tmp_path)
    assert bad == BadDocument("latin.txt", "not UTF-8: byte 0xef at 2", "not UTF-8")
    assert isinstance(second, BadDocument) and second.where == "lines.jsonl:2" and "UTF-8" in second.problem
    assert (first.text, third.text) == ("a", "c")


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_truncated_file_gives_what_comes_before_and_names_the_line(tmp_path, suffix):
    content = "".join(json.dumps({"text": os.urandom(300).hex()}) + "\n" for _ in range(2000)).encode()
    packed = gzip.compress(content) if suffix == ".gz" else zstandard.compress(content)
    (tmp_path / f"cut.jsonl{suffix}").write_bytes(packed[: len(packed) // 2])
    *documents, bad = read_all(tmp_path / f"cut.jsonl{suffix}")
    assert 0 < len(documents) < 2000
    assert isinstance(bad, BadDocument)
    assert bad.where == f"cut.jsonl{suffix}:{len(documents) + 1}" and "runcated" in bad.problem


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"txt": "misspelt"}', "'text' holds no text; fields: txt"),
        ('{"text": 7}', "holds a int"),
        ("[1, 2]", "a JSON list"),
        ('{"text": "broken', "not JSON"),
        ('{"text": "\\ud800"}', "surrogate"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, problem):
    (tmp_path / "l.jsonl").write_text('{"text": "good"}\n\n' + line + "\n")
    good, bad = read_all(tmp_path / "l.jsonl")
    assert good.text == "good"
    assert bad.where == "l.jsonl:3" and problem in bad.problem


def test_a_path_that_was_forgotten_is_not_the_working_folder(tmp_path, monkeypatch):
    """Such as that of a shell variable which is not set."""
    (tmp_path / "some.txt").write_text("some text")
    monkeypatch.chdir(tmp_path)
    for uri in ("", " "):
        with pytest.raises(ValueError, match="path of the corpus is empty"):
            open_corpus(uri)


def test_of_the_names_of_one_folder_the_first_counts_on_every_disk(tmp_path):
    for number in range(20):
        (tmp_path / f"real-{number}").mkdir()
        (tmp_path / f"real-{number}" / "some.txt").write_text(f"text {number}")
        (tmp_path / f"alias-{number}").symlink_to(f"real-{number}")
    names = {file.name for file in open_corpus(str(tmp_path)).files}
    assert names == {f"alias-{number}/some.txt" for number in range(20)}


def test_empty_corpora_are_errors(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "nothing.txt").touch()
    for uri in (tmp_path / "empty", tmp_path / "empty" / "nothing.txt"):
        with pytest.raises(ValueError, match="is empty.*\\.jsonl.*environment"):
            open_corpus(str(uri))
    with pytest.raises(ValueError, match="does not exist"):
        open_corpus(str(tmp_path / "absent"))
    with pytest.raises(ValueError, match="cannot be opened"):
        open_corpus("nosuchscheme://bucket/x")


def test_digest_follows_names_sizes_times_and_fields(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    os.utime(path, ns=(0, 1_000))
    before = open_corpus(str(tmp_path)).digest
    assert open_corpus(str(tmp_path)).digest == before
    assert open_corpus(str(tmp_path), text_field="body").digest != before
    os.utime(path, ns=(0, 2_000))
    assert open_corpus(str(tmp_path)).digest != before


def test_groups_keep_order_and_bound(tmp_path):
    for number, size in enumerate([40, 40, 40, 500, 10]):
        (tmp_path / f"{number}.txt").write_text("x" * size)
    groups = open_corpus(str(tmp_path)).groups(100)
    assert [[file.bytes for file in group] for group in groups] == [[40, 40], [40], [500], [10]]


MEASURED = {100_282_232: 258, 401_126_972: 967, 1_604_511_112: 3794}
"""Bytes of a corpus in passages of about 1,000 characters → MB of disk while its store was built, the most that there
were (tests/benchmarks/records/2026-11-30-scale.json)."""


@pytest.mark.parametrize("size", MEASURED)
def test_the_disk_of_a_build_is_said_within_a_fifth(tmp_path, size):
    (tmp_path / "a.txt").write_text("x")
    corpus = open_corpus(str(tmp_path))
    corpus = replace(corpus, files=(replace(corpus.files[0], bytes=size),))
    found = corpus.store_bytes(
        passage_characters=1000, max_passages=None, embedding_size=384, sampled_passages=6_400_000
    )
    assert found == pytest.approx(MEASURED[size] * 1e6, rel=0.2)


def test_the_tree_s_sample_takes_disk_where_passages_are_short(tmp_path):
    (tmp_path / "a.txt").write_text("x" * 9000)
    corpus = open_corpus(str(tmp_path))
    settings = dict(passage_characters=9, max_passages=None, embedding_size=400)
    less, more = (corpus.store_bytes(**settings, sampled_passages=sampled) for sampled in (600, 9_999))
    assert more - less == 400 * 2 * (1000 - 600)
