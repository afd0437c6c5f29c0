"""Deciding which passages are kept, and which part of which split each goes to.

All documents of the named sources are held out, and of every other source the documents whose hash falls below
`held_out_fraction`; so a document's split does not depend on the rest of the corpus. A passage is kept once, unless
duplicates are wanted. A held-out passage whose text also occurs in a training document is dropped, because the model
sees it in training. When documents are added to a store, every passage that the store already has is dropped.

Equal passages are found by their hashes (``buckets.py``), and text that was cut at other places by its runs of words
(``overlap.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.passages.buckets import BUCKET, PRESENT, bucket_count, deal_out, decide
from pipeline.passages.overlap import Passages, RunTasks, drop_seen, known_runs, rows_mostly_in
from pipeline.passages.parts import CODE_OF_SPLIT, DROPPED, Part, parts_of_split
from pipeline.passages.sources import (
    check_held_out,
    documents_by_outcome,
    documents_per_source,
    merged,
    sources_table,
)
from pipeline.tasks import run_tasks
from storage_schema.arrow_files import read_parquet
from storage_schema.corpus import SPLITS
from storage_schema.errors import UserError

_MIX = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Settings: what is kept of a corpus."""

    held_out_sources: tuple[str, ...] = ()
    held_out_fraction: float = 0.02
    max_documents_per_source: int | None = None
    max_passages: int | None = None
    """At most this many training passages, chosen by hash, so from all documents alike."""
    drop_duplicates: bool = True
    """Within a split. Passages that are in the other split, or already in the store, are dropped in any case."""


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
        run: runs the tasks that read the text.

    Raises:
        ValueError: the corpus has no document of a held-out source (allowed for documents added to a store).
        NothingLeft: nothing is left to train on.
    """
    edges = np.cumsum([0, *(pq.read_metadata(shard).num_rows for shard in shards)])
    rows = int(edges[-1]) + sum(pq.read_metadata(part).num_rows for part in present)
    buckets = [scratch / f"bucket-{b:03d}.arrows" for b in range(bucket_count(rows))]
    sources, over = _deal_out(shards, selection, buckets, present)
    if not present:
        check_held_out(set(sources["source"]), selection.held_out_sources)
    decisions = scratch / "decisions.u8"
    decided = np.memmap(decisions, np.uint8, "w+", shape=max(1, int(edges[-1])))
    counts = decide(
        buckets,
        edges,
        decided,
        max_passages=selection.max_passages,
        drop_duplicates=selection.drop_duplicates,
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
    table = sources_table(shards, sources, decided, edges)
    documents = documents_by_outcome(shards, decided, edges)
    documents["no passage kept"] = sources["documents"].sum() - sum(documents.values())
    documents["over max_documents_per_source"] = over["documents"]
    return SelectedPassages(
        parts=parts, decisions=decisions, sources=table, counts=counts, documents=documents
    )


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


def _deal_out(
    shards: Sequence[Path], selection: Selection, buckets: list[Path], present: Sequence[Path]
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Write every passage's hash to its bucket.

    Returns:
        The sources with their numbers of documents, and how many documents and passages exceed
        ``max_documents_per_source``.
    """
    over = {"documents": 0, "passages": 0}
    last_order = _last_orders(shards, selection.max_documents_per_source)
    unseen = pl.col("source").is_in(list(selection.held_out_sources))
    by_hash = pl.col("document_hash") < int(selection.held_out_fraction * 2**64)
    found: list[pl.DataFrame] = []
    with ExitStack() as stack:
        writers = [stack.enter_context(pa.ipc.new_stream(str(bucket), BUCKET)) for bucket in buckets]
        for part in present:
            hashes = pl.from_arrow(read_parquet(part, columns=["text_hash"]))
            deal_out(hashes.with_columns(shard=PRESENT, row=0, held_out=False), writers)
        for number, shard in enumerate(shards):
            rows = _read_hashes(shard).with_columns(shard=pl.lit(number, pl.Int32))
            if last_order is not None:
                every = rows
                rows = rows.join(last_order, on="source").filter(pl.col("order") <= pl.col("last"))
                over["documents"] += every["document_hash"].n_unique() - rows["document_hash"].n_unique()
                over["passages"] += len(every) - len(rows)
            rows = rows.with_columns(unseen=unseen, held_out=unseen | by_hash).sort("row")
            found.append(documents_per_source(rows))
            if len(found) > 64:
                found = [merged(found)]
            deal_out(rows, writers)
    return merged(found), over


def _read_hashes(shard: Path) -> pl.DataFrame:
    table = pl.from_arrow(read_parquet(shard, columns=["source", "document_hash", "text_hash"]))
    # This must not be the hash that decides the split: else the documents kept would be the held-out ones.
    order = table["document_hash"].to_numpy() * _MIX
    return table.with_columns(pl.col("source").cast(pl.String), order=pl.Series(order)).with_row_index("row")


def _last_orders(shards: Sequence[Path], limit: int | None) -> pl.DataFrame | None:
    """For each source, the largest ``order`` that a kept document may have; None if there is no limit."""
    if limit is None:
        return None
    kept = pl.DataFrame(schema={"source": pl.String, "order": pl.UInt64})
    for shard in shards:
        kept = pl.concat([kept, _read_hashes(shard).select("source", "order")]).unique()
        kept = kept.filter(pl.col("order").rank("ordinal").over("source") <= limit)
    return kept.group_by("source").agg(last=pl.col("order").max())
