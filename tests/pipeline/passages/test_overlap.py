"""Text that was cut otherwise, against the same rule written plainly."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.passages import overlap
from pipeline.passages.cutting import cut_passages, text_hash
from pipeline.passages.extraction import EXTRACTED
from pipeline.passages.selection import Selection, select_passages
from pipeline.passages.word_runs import RUN_WORDS, runs_of
from storage_schema.corpus import PASSAGES


def here(function, arguments):
    return [function(*some) for some in arguments]


def prose(words, seed=0):
    """Text without a paragraph, of words that come in no other order elsewhere."""
    generator = random.Random(seed)
    return " ".join(f"{generator.choice('abcdefg')}{generator.randrange(5000)}" for _ in range(words))


def write_shard(path, documents):
    """An extracted shard of (name, source, text), cut as a build cuts."""
    rows = [
        (name, source, passage, text_hash(name), text_hash(passage))
        for name, source, text in documents
        for passage in cut_passages(text, 400)
    ]
    columns = zip(*rows, strict=True)
    table = pa.table([pa.array(c, f.type) for c, f in zip(columns, EXTRACTED, strict=True)], EXTRACTED)
    pq.write_table(table, path, row_group_size=50)
    return path


def plan_of(tmp_path, documents, **more):
    shard = write_shard(tmp_path / "shard.parquet", documents)
    chosen = Selection(held_out_sources=("b",), held_out_fraction=0)
    return select_passages([shard], chosen, tmp_path, run=here, **more)


@pytest.mark.parametrize("number", [1, 2, 7, 64, 300])
def test_runs_are_found_among_the_known_ones(tmp_path, monkeypatch, number):
    """Of neighbours too, that share a table's byte or a bit, and on either side of where it is made in two pieces."""
    monkeypatch.setattr(overlap, "AT_ONCE", 10)
    random_64 = np.random.Generator(np.random.PCG64(number)).integers(0, 2**64, number, np.uint64)
    known = np.unique(
        np.concatenate([random_64[: number // 2 + 1], random_64[0] + np.arange(number // 2, dtype=np.uint64)])
    )
    overlap._save(tmp_path / "known.npy", known)
    overlap._save(overlap._beginnings_of(tmp_path / "known.npy"), overlap._beginnings(known))
    asked = np.concatenate(
        [random_64, known[::-1], known + np.uint64(1), np.array([0, 2**64 - 1], np.uint64)]
    )
    which, where = overlap._KnownRuns(tmp_path / "known.npy").find(asked)
    assert sorted(which) == np.flatnonzero(np.isin(asked, known)).tolist()
    assert np.array_equal(known[where], asked[which])


def test_runs_are_those_of_a_plain_reading():
    generator = random.Random(1)
    pieces = [
        "the",
        "The",
        "cat",
        "act",
        "x_1",
        "naïve",
        "—",
        " ",
        "\n",
        ", ",
        " ",
        "-",
        "日本",
        "한",
        "é",
        ".",
    ]
    texts = ["".join(generator.choices(pieces, k=generator.randrange(150))) for _ in range(40)]
    first = np.array([True, *(generator.random() < 0.5 for _ in texts[1:])])
    hashes, texts_R = runs_of(pa.array(["zz", *texts], pa.large_string())[1:], first)
    documents: list[list[tuple[int, str]]] = []
    for number, text in enumerate(texts):
        if first[number]:
            documents.append([])
        documents[-1] += [(number, character) for character in text]
    expected = []
    for document in documents:
        words: list[tuple[int, str]] = []
        before = " "
        for number, character in document:
            small = character.lower() if character.isascii() else character
            letter = small.isalnum() or small == "_" or not small.isascii()
            alone = "\u3000" <= small <= "\ud7ff"
            if letter and (alone or not (before.isalnum() or before == "_" or not before.isascii())):
                words.append((number, small))
            elif letter:
                words[-1] = (words[-1][0], words[-1][1] + small)
            before = small
        expected += [
            (words[i][0], tuple(word for _, word in words[i : i + RUN_WORDS]))
            for i in range(len(words) - RUN_WORDS + 1)
        ]
    assert texts_R.tolist() == [number for number, _ in expected] and len(expected) > 300
    # Equal runs have equal hashes, and others have others.
    assert len(set(hashes.tolist())) == len({run for _, run in expected})
    assert len(set(zip(hashes.tolist(), (run for _, run in expected), strict=True))) == len(
        set(hashes.tolist())
    )


def test_one_line_more_at_the_head_hides_nothing(tmp_path):
    """Every cut of the held-out document is another; each of its passages was trained on all the same."""
    text = prose(1000)
    documents = [("d1", "a", "A line of its own.\n" + text), ("d2", "a", prose(300, 7)), ("d3", "b", text)]
    documents.append(("d4", "b", prose(300, 8)))
    assert not set(cut_passages(documents[0][2], 400)) & set(cut_passages(text, 400))
    plan = plan_of(tmp_path, documents)
    assert plan.counts["held_out_near_training_dropped"] == len(cut_passages(text, 400)) > 10
    assert plan.counts["held_out_passages"] == len(cut_passages(documents[3][2], 400))
    assert plan.counts["passages"] == sum(len(cut_passages(documents[d][2], 400)) for d in (0, 1))
    assert plan.counts["near_held_out_dropped"] == 0


def test_boilerplate_of_all_documents_empties_nothing(tmp_path):
    licence = prose(40, 3)
    documents = [(f"d{n}", "ab"[n % 2], f"{licence}\n{prose(15, 100 + n)}") for n in range(40)]
    plan = plan_of(tmp_path, documents)
    assert plan.counts["passages"] == 20 and plan.counts["near_held_out_dropped"] == 0
    assert plan.counts["held_out_near_training_dropped"] == 20  # 28 of the 43 runs of each were seen
    documents = [(f"d{n}", "ab"[n % 2], f"{prose(20, 3)}\n{prose(35, 100 + n)}") for n in range(40)]
    assert plan_of(tmp_path, documents).counts["held_out_passages"] == 20


def test_what_is_added_is_not_what_the_store_holds_out(tmp_path):
    held_out, trained = prose(500, 1), prose(500, 2)
    present = []
    for split, text in (("train", trained), ("held_out", held_out)):
        rows = [(n, split, "s", some, text_hash(some)) for n, some in enumerate(cut_passages(text, 400))]
        columns = zip(*rows, strict=True)
        table = pa.table(
            [pa.array(c, f.type) for c, f in zip(columns, PASSAGES, strict=True)], schema=PASSAGES
        )
        (tmp_path / split).mkdir()
        present.append(tmp_path / split / "part-00000.parquet")
        pq.write_table(table, present[-1])
    new = prose(500, 3)
    documents = [
        ("d1", "a", "One line.\n" + held_out),
        ("d2", "a", new),
        ("d3", "b", "One line.\n" + trained),
    ]
    plan = plan_of(tmp_path, documents, present=present)
    moved = set(cut_passages(documents[0][2], 400)) - set(cut_passages(held_out, 400))
    assert plan.counts["near_held_out_dropped"] == len(moved) >= 7
    moved = set(cut_passages(documents[2][2], 400)) - set(cut_passages(trained, 400))
    assert plan.counts["held_out_near_training_dropped"] == len(moved) >= 7
    assert plan.counts["passages"] == len(cut_passages(new, 400)) and not plan.counts["held_out_passages"]


def test_of_too_many_runs_the_lowest_stand_for_all(tmp_path, monkeypatch):
    monkeypatch.setattr(overlap, "MOST_RUNS", 150)
    text = prose(1000)
    documents = [("d1", "a", "A line of its own.\n" + text), ("d2", "b", text), ("d3", "b", prose(500, 8))]
    counts = plan_of(tmp_path, documents).counts
    assert counts["held_out_near_training_dropped"] >= 0.8 * len(cut_passages(text, 400))
    assert counts["held_out_passages"] >= len(cut_passages(documents[2][2], 400))
