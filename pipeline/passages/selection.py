"""Deciding which passages are kept, and which part of which split each goes to.

All documents of the named sources are held out, and of every other source the documents whose hash falls below
`held_out_fraction`; so a document's split does not depend on the rest of the corpus. A passage is kept once, unless
duplicates are wanted. A held-out passage whose text also occurs in a training document is dropped, because the model
sees it in training. When documents are added to a store, every passage that the store already has is dropped.

Equal passages are found by their hashes (``buckets.py``), and text that was cut at other places by its runs of words
(``overlap.py``).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from pipeline.passages.buckets import bucket_count, decide_bucket, mark_kept
from pipeline.passages.dealing import Selection as Selection
from pipeline.passages.dealing import deal_out, grouped
from pipeline.passages.overlap import Passages, drop_seen, known_runs, rows_mostly_in
from pipeline.passages.parts import CODE_OF_SPLIT, DROPPED, Part, parts_of_split
from pipeline.passages.sources import OUTCOMES, Shard, check_held_out, count_kept, sources_table
from pipeline.tasks import run_tasks
from storage_schema.corpus import SPLITS, rows_of
from storage_schema.errors import UserError
from storage_schema.stage import RunTasks


@dataclass(frozen=True, kw_only=True)
class SelectedPassages:
    """The parts to write, the decisions they are made by, and what became of the rest."""

    parts: list[Part]
    decisions: Path
    """A file with one byte per passage, shard after shard (``parts.py``)."""
    sources: pa.Table
    counts: dict[str, int]
    """Numbers of passages, by what became of them."""
    documents: dict[str, int]
    """Numbers of documents, by what became of them."""


class NothingLeft(UserError):
    """No passage is left to train on. `counts` says what became of all passages."""

    def __init__(self, counts: dict[str, int]):
        super().__init__("no passage is left to train on")
        self.counts = counts


def select_passages(
    shards: Sequence[Path],
    selection: Selection,
    scratch: Path,
    *,
    present: Sequence[Path] = (),
    run: RunTasks = run_tasks,
) -> SelectedPassages:
    """Decide on every passage of the extracted `shards`.

    Args:
        scratch: a folder to work in.
        present: the part files that the store already has, if the documents are added to a store.
        run: runs the tasks.

    Raises:
        ValueError: the corpus has no document of a held-out source (allowed for documents added to a store).
        NothingLeft: nothing is left to train on.
    """
    rows_S = rows_of(shards)
    edges = np.cumsum([0, *rows_S])
    rows = sum(rows_S) + sum(rows_of(present))
    groups = list(grouped(shards, rows_S))
    decisions = scratch / "decisions.u8"
    decided = np.memmap(decisions, np.uint8, "w+", shape=max(1, int(edges[-1])))
    sources, over, counts = _drop_duplicates(
        groups, selection, decided, bucket_count(rows), scratch / "buckets", present, run
    )
    counts["over_max_documents_per_source_dropped"] = over["passages"]
    if not counts["passages"]:
        raise NothingLeft(counts)
    decided.flush()
    counts |= _drop_overlap(shards, present, decided, edges, scratch, run)
    counts["passages"] -= counts["near_held_out_dropped"]
    counts["held_out_passages"] -= counts["held_out_near_training_dropped"]
    if not counts["passages"]:
        raise NothingLeft(counts)
    parts: list[Part] = []
    for split in SPLITS:
        parts += parts_of_split(split, decided, edges, len(present) + len(parts))
    decided.flush()
    kept = run(count_kept, [(group, decisions) for group in groups])
    documents = {name: sum(of_group[name] for _, of_group in kept) for name in OUTCOMES}
    documents["no passage kept"] = sources["documents"].sum() - sum(documents.values())
    documents["over max_documents_per_source"] = over["documents"]
    table = sources_table(sources, [passages for passages, _ in kept])
    return SelectedPassages(
        parts=parts, decisions=decisions, sources=table, counts=counts, documents=documents
    )


def _drop_duplicates(
    groups: Sequence[list[Shard]],
    selection: Selection,
    decided: np.ndarray,
    buckets: int,
    dealt: Path,
    present: Sequence[Path],
    run: RunTasks,
) -> tuple[pl.DataFrame, dict[str, int], dict[str, int]]:
    """Fill `decided`; returns the sources and what is over the limit (as :func:`deal_out` does), and the counts."""
    shutil.rmtree(dealt, ignore_errors=True)
    dealt.mkdir()
    sources, over = deal_out(groups, selection, dealt, buckets, present, run)
    if not present:
        check_held_out(set(sources["source"]), selection.held_out_sources)
    by_hash = selection.max_passages is not None
    counts = run(
        decide_bucket, [(dealt, bucket, selection.drop_duplicates, by_hash) for bucket in range(buckets)]
    )
    total = mark_kept(dealt, counts, decided, selection.max_passages)
    shutil.rmtree(dealt)
    return sources, over, total


def _drop_overlap(
    shards: Sequence[Path],
    present: Sequence[Path],
    decided: np.memmap,
    edges: np.ndarray,
    scratch: Path,
    run: RunTasks,
) -> dict[str, int]:
    """Drop passages that are not equal to a passage of the other split, but mostly in its text."""
    training, held_out = (
        [
            Passages(path=shard, decisions=Path(str(decided.filename)), begin=int(begin), code=code)
            for shard, begin in zip(shards, edges, strict=False)
        ]
        for code in CODE_OF_SPLIT.values()
    )
    there = {
        split: [Passages(path=part) for part in present if part.parent.name == split] for split in SPLITS
    }
    counts = {"near_held_out_dropped": 0, "held_out_near_training_dropped": 0}
    known = known_runs(there["held_out"], scratch, run)
    if known is not None:
        rows = run(rows_mostly_in, [(some, known) for some in training])
        counts["near_held_out_dropped"] = _undo(rows, edges, decided)
    rows = drop_seen(held_out, training + there["train"], scratch, run)
    counts["held_out_near_training_dropped"] = _undo(rows, edges, decided)
    return counts


def _undo(rows_S: Sequence[np.ndarray], edges: np.ndarray, decided: np.memmap) -> int:
    """Mark rows of each shard as dropped; returns how many."""
    for begin, rows in zip(edges, rows_S, strict=False):
        decided[begin + rows] = DROPPED
    decided.flush()
    return sum(map(len, rows_S))
