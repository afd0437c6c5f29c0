"""Held-out text as specialist sets, of any number of documents."""

import hashlib
import random

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.specialists import held_out
from pipeline.specialists.held_out import _split, generic_evaluation, held_out_sets
from storage_schema.corpus import PASSAGES, SOURCES
from storage_schema.stage import open_stage


@pytest.mark.parametrize("sizes", [[500], [2, 3, 300], [109, *[3] * 5]])
def test_a_held_out_source_that_is_mostly_one_document_is_shared(sizes):
    """It has enough passages, so it is a set, whichever document comes first by its hash."""
    for first in range(8):
        rows = [(f"{first} {d}", f"{d} {n}") for d, size in enumerate(sizes) for n in range(size)]
        frame = pl.DataFrame(rows, schema=["document_id", "text"], orient="row")
        made = _split("s", frame, 200, 20, unseen_source=True)
        assert made is not None and len(made.evaluation) == 20 and len(made.texts) >= 20
        assert not set(made.texts) & set(made.evaluation)


def write_store(folder, rows, *, unseen, part_rows):
    """A store whose held-out passages are `rows` of (document, source, text)."""
    stage = open_stage(folder / "passages", kind="passages", configuration={}, inputs={})
    (stage.work / "held_out").mkdir()
    for number, first in enumerate(range(0, len(rows), part_rows)):
        some = rows[first : first + part_rows]
        columns = [range(len(some)), *zip(*some, strict=True), [0] * len(some)]
        table = [pa.array(column, field.type) for column, field in zip(columns, PASSAGES, strict=True)]
        part = stage.work / "held_out" / f"part-{number:05d}.parquet"
        pq.write_table(pa.table(table, schema=PASSAGES), part)
    names = sorted({source for _, source, _ in rows})
    columns = [names, *[[1] * len(names)] * 3, [name in unseen for name in names]]
    pq.write_table(pa.table(columns, schema=SOURCES), stage.work / "sources.parquet")
    stage.finish({})


def plainly(rows, unseen, max_texts, evaluation, max_sets):
    """The sets, made of all of the text."""
    frame = pl.DataFrame(rows, schema=["document_id", "source", "text"], orient="row")
    made = [
        (-len(some), source, _split(source, some, max_texts, evaluation, unseen_source=source in unseen))
        for (source,), some in frame.group_by("source", maintain_order=True)
    ]
    made = sorted(one for one in made if one[2] is not None)
    kinds = [[one for *_, one in made if one.unseen_source is unseen] for unseen in (True, False)]
    turns = range(max(map(len, kinds)))
    return [kind[turn] for turn in turns for kind in kinds if turn < len(kind)][:max_sets]


def test_sets_of_a_sample_are_those_of_all_the_text(tmp_path):
    generator = random.Random(0)
    refused = 0
    for turn in range(12):
        rows = []
        for document in range(generator.choice([1, 2, 8, 45])):
            source = generator.choice("abcd")
            for number in range(generator.choice([1, 2, 5, 40])):
                rows.append((f"{turn} {document}", source, f"{document} and {number}"))
        unseen = generator.choice([set(), {"a"}, {"b", "d"}])
        asked = (generator.choice([5, 30, 200]), generator.choice([0, 3, 20]), generator.choice([1, 2, 9]))
        store = tmp_path / str(turn)
        write_store(store, rows, unseen=unseen, part_rows=generator.choice([30, 100, 1000]))
        names = dict(zip(("max_texts", "evaluation_passages", "max_sets"), asked, strict=True))
        if expected := plainly(rows, unseen, *asked):
            assert held_out_sets(store, **names) == expected
        else:
            refused += 1
            with pytest.raises(ValueError, match="no held-out source"):
                held_out_sets(store, **names)
        texts = [text for _, source, text in rows if source not in unseen]
        ranked = sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())
        assert generic_evaluation(store, passages=9) == ranked[:9]
    assert 0 < refused < 8


def test_memory_holds_the_sample_not_the_text_that_is_held_out(tmp_path, monkeypatch):
    rows = [(f"d{d}", "ab"[d % 2], f"{d} {n}") for d in range(2000) for n in range(2)]
    write_store(tmp_path, rows, unseen={"a"}, part_rows=200)
    taken, collect, read = [], pl.LazyFrame.collect, held_out.read_parquet

    def counted(frame, columns):
        taken.append(len(frame) if "text" in columns else 0)
        return frame

    def collected(*args, **more):
        found = collect(*args, **more)
        return counted(found, found.columns)

    monkeypatch.setattr(pl.LazyFrame, "collect", collected)
    monkeypatch.setattr(held_out, "read_parquet", lambda path, columns: counted(read(path, columns), columns))
    sets = held_out_sets(tmp_path, max_texts=50, evaluation_passages=10, max_sets=9)
    assert len(sets) == 2 and sum(taken) <= 2 * 62
    taken.clear()
    assert len(generic_evaluation(tmp_path, passages=20)) == 20 and max(taken) <= 200
