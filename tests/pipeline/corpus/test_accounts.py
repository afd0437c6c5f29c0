"""Every document and passage of a corpus is accounted for, whatever is wrong with its files."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import tempfile
from collections import Counter
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus.accounts import Tally, account_lines
from pipeline.corpus.listing import open_corpus
from pipeline.passages import build as passages
from pipeline.passages.build import build_passages
from pipeline.passages.selection import Selection
from storage_schema.corpus import part_files
from storage_schema.stage import open_stage
from tests.toy_corpora import save_dataset

PACKINGS = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
BASE = [{"text": f"base {number}", "source": "kept" if number else "held"} for number in range(5)]
LONG = "first part\n\n" + " \n" * 60 + "\n\nlast part"
"""Cut at 64 characters, two of its passages are blank."""
TEXTS = st.sampled_from(["one", "two", "three", "base 1", "\ufeffone", LONG, f"words {'and more ' * 20}"])
SOURCES = st.sampled_from(["kept", "held", None, "", 7, "u\u0308"])
good = st.fixed_dictionaries({"text": TEXTS, "source": SOURCES})
wrong = st.sampled_from(
    [
        ({"text": " \n"}, "blank"),
        ({"text": "\ufeff"}, "blank"),
        ({"text": None}, "bad: no text"),
        ({"text": "a\0b"}, "bad: zero bytes"),
        ({"text": "a", "source": "\0"}, "bad: zero bytes"),
    ]
)
only_in_lines = st.sampled_from(
    [
        ({"text": "\ud800"}, "bad: a lone surrogate"),
        ({"text": "a", "source": "\udc00"}, "bad: a lone surrogate"),
        ({"text": "a", "source": 1.0}, "bad: no name as source"),
        ({"other": "a"}, "bad: no text"),
        ([1], "bad: no JSON object"),
        (b'{"text": "broken', "bad: not JSON"),
    ]
)
records = good.map(lambda record: (record, None))


@st.composite
def files(draw):
    """``(name, content or records, outcomes, damaged)``; outcomes are None for a document with text."""
    kind = draw(st.sampled_from(["lines", "lines", "text", "parquet", "arrow"]))
    cut = draw(st.none() | st.none() | st.floats(0, 0.999))
    if kind in ("parquet", "arrow"):
        rows = draw(st.lists(records | wrong, max_size=6))
        # One type a column: without the sources, whose names are strings and a number.
        rows = [
            ({"text": row["text"]}, outcome) for row, outcome in rows if "\0" not in str(row.get("source"))
        ]
        return kind, [row for row, _ in rows], [outcome for _, outcome in rows], cut
    packing = draw(st.sampled_from(sorted(PACKINGS)))
    encoding = draw(st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le"]))
    if kind == "text":
        record, outcome = draw(
            records | wrong.filter(lambda pair: pair[0]["text"] and "source" not in pair[0])
        )
        text, found = record["text"], [outcome]
    else:
        lines = draw(st.lists(records | wrong | only_in_lines, max_size=6))
        # A list at the very beginning is a file of another shape.
        lines = [({"text": "one"}, None), *lines]
        raw = [row if isinstance(row, bytes) else json.dumps(row).encode() for row, _ in lines]
        text, found = b"\n\n".join(raw).decode() + "\n", [outcome for _, outcome in lines]
    content = text.encode(encoding)
    if encoding == "utf-16-le" and not text.startswith("\ufeff"):  # no mark
        found = ["bad: zero bytes"] if kind == "text" else None
    if not packing:
        cut = None
    packed = PACKINGS[packing](content)
    return f"{'txt' if kind == 'text' else 'jsonl'}{packing}", packed, found, cut


def write(folder: Path, number: int, kind: str, content, cut) -> bool:
    """Write the file; whether it was cut."""
    path = folder / f"{number}.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"text": pa.array([row["text"] for row in content], pa.string())}), path)
    elif kind == "arrow":
        save_dataset(folder / str(number), content or [{"text": "one"}], shards=1, batch=2)
        path = folder / str(number) / "data-00000-of-00001.arrow"
    else:
        path.write_bytes(content)
    if cut is not None:
        whole = path.read_bytes()
        path.write_bytes(whole[: max(1, int(cut * len(whole)))])
    return cut is not None


@pytest.fixture
def no_ray(monkeypatch):
    monkeypatch.setattr(passages, "run_tasks", lambda work, given, **_: [work(*one) for one in given])


def build(folder: Path, corpus: Path, selection: Selection, **losses):
    stage = open_stage(folder / "passages", kind="passages", configuration={}, inputs={})
    allowed = {"max_bad_documents": 99, "max_damaged_files": 99, **losses}
    return build_passages(stage, open_corpus(str(corpus)), selection, passage_characters=64, **allowed).counts


@settings(derandomize=True, deadline=None, database=None, max_examples=80)
@given(
    made=st.lists(files(), max_size=5),
    selection=st.builds(
        Selection,
        held_out_sources=st.sampled_from([(), ("held",)]),
        held_out_fraction=st.sampled_from([0.0, 0.3]),
        max_documents_per_source=st.sampled_from([None, None, 2]),
        max_passages=st.sampled_from([None, None, 3]),
        drop_duplicates=st.booleans(),
    ),
)
def _numbers_add_up(made, selection):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "c").mkdir()
        (folder / "c/base.jsonl").write_text("".join(json.dumps(record) + "\n" for record in BASE))
        (folder / "c/other.png").write_bytes(b"x")
        certain: Counter = Counter({None: len(BASE)})
        possible, damaged = len(BASE), 0
        for number, (kind, content, outcomes, cut) in enumerate(made):
            was_cut = write(folder / "c", number, kind, content, cut)
            if kind == "arrow" and not content:
                outcomes = [None]
            damaged += was_cut or outcomes is None
            possible += len(outcomes or ())
            if not was_cut:
                certain.update(outcomes or ())
        try:
            counts = build(folder, folder / "c", selection)
        except ValueError as error:
            assert "no passage to train on. " in str(error) and " documents: " in str(error)
            return
        _check(counts, folder, certain, possible, damaged)
        if not (damaged or selection.max_passages or selection.max_documents_per_source):
            texts = {text for split in ("train", "held_out") for text in _read(folder, split)["text"]}
            assert {f"base {number}" for number in range(5)} <= texts


def _check(counts, folder, certain, possible, damaged):
    documents, cut = counts["documents_by_outcome"], counts["passages_by_outcome"]
    assert counts["documents_read"] == sum(documents.values())
    assert counts["passages_cut"] == sum(cut.values())
    assert counts["damaged_files"] == damaged == len(counts["damaged_files_named"])
    assert counts["files_not_read"][".png"] == 1
    assert sum(certain.values()) <= counts["documents_read"] <= possible
    for outcome, number in certain.items():
        found = counts["documents"] if outcome is None else documents.get(outcome, 0)
        assert found == number if not damaged else found >= number
    for split, outcome in (("train", "trained on"), ("held_out", "held out")):
        kept = _read(folder, split)
        assert kept["document_id"].n_unique() == documents.get(outcome, 0)
        assert len(kept) == cut.get(outcome, 0)
        assert not any(not text.strip() or "\0" in text or "\ufeff" in text for text in kept["text"])
    assert all(isinstance(line, str) for line in account_lines(counts))


def _read(folder: Path, split: str) -> pl.DataFrame:
    parts = [pl.read_parquet(part) for part in part_files(folder / "passages", split)]
    return pl.concat(parts) if parts else pl.DataFrame({"document_id": [], "text": []})


def test_the_numbers_add_up_over_every_format_and_damage(no_ray):
    _numbers_add_up()


def test_a_damaged_file_ends_the_build_unless_it_is_allowed(no_ray, tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c/good.jsonl").write_text("".join(json.dumps({"text": f"t {i}"}) + "\n" for i in range(50)))
    packed = gzip.compress(b"".join(json.dumps({"text": f"z {i * i}"}).encode() + b"\n" for i in range(9000)))
    (tmp_path / "c/cut.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    refused = (
        r"1 files or more of .* max_damaged_files is 0\. First: cut\.jsonl\.gz:\d+: ends early: .*; [\d,]+ "
        r"documents of it were read before\. .* raise max_damaged_files"
    )
    with pytest.raises(ValueError, match=refused):
        build(tmp_path, tmp_path / "c", Selection(), max_damaged_files=0)
    counts = build(tmp_path, tmp_path / "c", Selection(), max_damaged_files=1, max_bad_documents=0)
    assert counts["damaged_files"] == 1 and counts["bad_documents"] == 0
    assert 3000 < counts["documents_read"] < 9000
    assert "1 damaged files" in "".join(account_lines(counts))


def test_a_corpus_that_leaves_nothing_says_why(no_ray, tmp_path):
    (tmp_path / "c.jsonl").write_text('{"text": " "}\n' + '{"txt": "misspelt"}\n' * 3)
    with pytest.raises(ValueError, match=r"no passage to train on. 4 documents: 3 bad: no text, 1 blank. .*"
                       r"First: c.jsonl:2: field 'text' holds no text; fields: txt;.*Give other text\.$"):  # fmt: skip
        build(tmp_path, tmp_path / "c.jsonl", Selection(held_out_sources=("x",)))
    (tmp_path / "d.jsonl").write_text('{"text": "words"}\n')
    with pytest.raises(ValueError, match="1 passages: 1 held out. Give other text, or hold out less"):
        build(tmp_path / "d", tmp_path / "d.jsonl", Selection(held_out_sources=("d",)))


def test_tallies_add_up():
    one = Tally(documents_read=3, bad={"x": 1}, dropped={"blank": 1}, bad_named=["a"], damaged={"f": "first"})
    two = Tally(
        documents_read=2, bad={"x": 1, "y": 1}, bad_named=["b"] * 20, damaged={"g": "", "f": "second"}
    )
    total = Tally.total([one, two])
    assert (total.documents_read, total.bad_documents, total.dropped) == (5, 3, {"blank": 1})
    assert [*total.damaged.items()] == [("f", "first"), ("g", "")] and total.bad_named == ["a", *["b"] * 9]
