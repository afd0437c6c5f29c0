"""What is decided from hashes, against the same rules written plainly."""

from __future__ import annotations

import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.passages import buckets, dealing, parts
from pipeline.passages.cutting import text_hash
from pipeline.passages.extraction import EXTRACTED
from pipeline.passages.parts import rows_of
from pipeline.passages.selection import Selection, select_passages

SOURCES = ("ant", "bee", "cow", "dog")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Shards of documents of one to five passages, many of them duplicates, and their rows."""
    folder = tmp_path_factory.mktemp("shards")
    generator = np.random.default_rng(0)
    shards, rows, document = [], [], 0
    for number in range(7):
        here = []
        for _ in range(generator.integers(0, 90)):
            name, source = f"document {document}", SOURCES[generator.integers(4)]
            document += 1
            for _ in range(generator.integers(1, 6)):
                text = f"passage {generator.integers(600)}"
                here.append((name, source, text, text_hash(name), text_hash(text)))
        columns = list(zip(*here, strict=True)) or [()] * 5
        table = pa.table([pa.array(c, f.type) for c, f in zip(columns, EXTRACTED, strict=True)], EXTRACTED)
        shards.append(folder / f"shard-{number}.parquet")
        pq.write_table(table, shards[-1])
        rows.append(here)
    return shards, rows


def plainly(rows, chosen):
    """(train, held out) as lists of (shard, row)."""
    mixed = {r[0]: (r[3] * int(dealing._MIX)) % 2**64 for here in rows for r in here}
    allowed = set(mixed)
    if chosen.max_documents_per_source is not None:
        of = {source: {r[0] for here in rows for r in here if r[1] == source} for source in SOURCES}
        limit = chosen.max_documents_per_source
        allowed = {name for names in of.values() for name in sorted(names, key=mixed.get)[:limit]}
    first = [{}, {}]
    for s, here in enumerate(rows):
        for i, (name, source, _, document, text) in enumerate(here):
            if name in allowed:
                held_out = source in chosen.held_out_sources or document < chosen.held_out_fraction * 2**64
                places = first[held_out].setdefault(text, [])
                if not (places and chosen.drop_duplicates):
                    places.append((s, i))
    train, held_out = first
    fresh = sorted(place for text, places in held_out.items() if text not in train for place in places)
    kept = [place for text in sorted(train) for place in train[text]]
    return sorted(kept[: chosen.max_passages]), fresh


@pytest.mark.parametrize("bucket_rows", [1 << 20, 30])
@pytest.mark.parametrize(
    "chosen",
    [
        Selection(held_out_fraction=0.1),
        Selection(held_out_sources=("bee",), held_out_fraction=0.0, max_passages=150),
        Selection(held_out_sources=("ant", "dog"), max_documents_per_source=20),
        Selection(held_out_fraction=0.3, max_documents_per_source=9, max_passages=40),
        Selection(held_out_fraction=0.2, drop_duplicates=False),
        Selection(held_out_fraction=0.2, drop_duplicates=False, max_passages=130),
    ],
)
def test_the_rules_hold_whatever_the_number_of_buckets(corpus, chosen, bucket_rows, tmp_path, monkeypatch):
    monkeypatch.setattr(buckets, "BUCKET_ROWS", bucket_rows)
    monkeypatch.setattr(dealing, "GROUP_ROWS", 3 * bucket_rows)
    monkeypatch.setattr(parts, "LEAST_PART_ROWS", 11)
    shards, rows = corpus
    folder = tmp_path / "store[1]"  # which is no pattern
    folder.mkdir()
    selected = select_passages(shards, chosen, folder, run=lambda f, given: [f(*some) for some in given])
    assert [part.number for part in selected.parts] == list(range(len(selected.parts)))
    found = {"train": [], "held_out": []}
    for part in selected.parts:
        here = [
            (shard, int(row))
            for (shard, _, _), taken in zip(part.shards, rows_of(part, selected.decisions), strict=True)
            for row in taken
        ]
        assert len(here) == part.rows
        found[part.split] += here
    train, held_out = plainly(rows, chosen)
    assert found == {"train": train, "held_out": held_out}
    assert selected.counts["passages"] == len(train) and selected.counts["held_out_passages"] == len(held_out)
    for line in selected.sources.to_pylist():
        assert line["train_passages"] == sum(rows[s][i][1] == line["source"] for s, i in train)
        assert line["held_out_passages"] == sum(rows[s][i][1] == line["source"] for s, i in held_out)
        assert line["unseen"] == (line["source"] in chosen.held_out_sources)
    assert not list(folder.glob("bucket*"))


def test_tasks_do_the_work_with_arguments_that_do_not_grow(corpus, tmp_path, monkeypatch):
    """Of ten times as many shards, ten times as many tasks; the arguments and results of each are as large."""
    monkeypatch.setattr(dealing, "GROUP_ROWS", 100)
    shards, _ = corpus
    largest = {}

    def run(function, arguments):
        results = [function(*some) for some in arguments]
        sizes = [len(pickle.dumps(pair)) for pair in zip(arguments, results, strict=True)]
        largest.setdefault(times, {})[function.__name__] = (len(sizes), max(sizes, default=0))
        return results

    for times in (2, 20):
        folder = tmp_path / str(times)
        folder.mkdir()
        select_passages(shards * times, Selection(held_out_fraction=0.1, max_passages=50), folder, run=run)
    for name in ("deal_shards", "count_kept"):
        (few, small), (many, large) = (largest[times][name] for times in (2, 20))
        assert many == 10 * few and large <= small + 16
    assert largest[20]["decide_bucket"][1] <= largest[2]["decide_bucket"][1] + 16
