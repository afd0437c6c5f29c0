"""Which passages are kept, and which part of which split each goes to. Works on hashes only.

Held out are all documents of the named sources and, of every other source, the documents whose hash falls
below `held_out_fraction`; so a document's split does not depend on what else is in the corpus. A passage is
kept once; a held-out passage whose text occurs in a training document is dropped, because it was seen.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from storage_schema.corpus import SOURCES, SPLITS

LEAST_PART_ROWS, MOST_PART_ROWS, USUAL_PARTS = 256, 16_384, 64
_MIX = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What is kept of a corpus."""

    held_out_sources: tuple[str, ...] = ()
    held_out_fraction: float = 0.02
    max_documents_per_source: int | None = None
    max_passages: int | None = None
    """Training passages, taken by hash, so from all documents alike."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part to be written: rows of some shards, in order."""

    split: str
    number: int
    """Over both splits: training parts first."""
    rows_of_shard: list[tuple[int, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which passages of which shards are written, part by part."""

    parts: list[Part]
    sources: pa.Table
    counts: dict[str, int]


def select_passages(shards: Sequence[Path], selection: Selection) -> Plan:
    """Decide on every passage of the extracted `shards`.

    Raises:
        ValueError: a held-out source that is not there, or nothing to train on.
    """
    passages = _read_hashes(shards)
    _check_sources(passages, selection.held_out_sources)
    if selection.max_documents_per_source is not None:
        passages = _limit_documents(passages, selection.max_documents_per_source)
    unseen = pl.col("source").is_in(list(selection.held_out_sources))
    by_hash = pl.col("document_hash") < int(selection.held_out_fraction * 2**64)
    passages = passages.with_columns(unseen=unseen, held_out=unseen | by_hash)
    every_train = passages.filter(~pl.col("held_out"))
    every_held_out = passages.filter(pl.col("held_out"))
    train = every_train.unique("text_hash", keep="first", maintain_order=True)
    held_out = every_held_out.unique("text_hash", keep="first", maintain_order=True)
    fresh = held_out.join(train, on="text_hash", how="anti", maintain_order="left")
    distinct = len(train)
    if selection.max_passages is not None and distinct > selection.max_passages:
        train = train.sort("text_hash").head(selection.max_passages).sort("shard", "row")
    if not len(train):
        raise ValueError(
            "The corpus leaves no passage to train on: it has no readable document that is not held out. "
            "Give more text, or hold out less (held_out_sources, held_out_fraction)."
        )
    parts = [*_parts("train", train, 0)]
    parts += _parts("held_out", fresh, len(parts))
    counts = {
        "passages": len(train),
        "held_out_passages": len(fresh),
        "train_duplicates_dropped": len(every_train) - distinct,
        "train_passages_over_the_limit": distinct - len(train),
        "held_out_duplicates_dropped": len(every_held_out) - len(held_out),
        "held_out_seen_in_training_dropped": len(held_out) - len(fresh),
    }
    return Plan(parts=parts, sources=_sources(passages, train, fresh), counts=counts)


def _read_hashes(shards: Sequence[Path]) -> pl.DataFrame:
    columns = ["source", "document_hash", "text_hash"]
    frames = [
        pl.from_arrow(pq.read_table(shard, columns=columns))
        .with_columns(pl.col("source").cast(pl.String), shard=pl.lit(number, pl.Int32))
        .with_row_index("row")
        for number, shard in enumerate(shards)
    ]
    return pl.concat(frames)


def _check_sources(passages: pl.DataFrame, held_out: Sequence[str]) -> None:
    known = set(passages["source"].unique())
    for name in held_out:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=5, cutoff=0.5) or sorted(known)[:5]
            raise ValueError(
                f"held_out_sources names {name!r}, which is none of the corpus's {len(known)} sources. "
                f"Near names: {', '.join(near)}."
            )


def _limit_documents(passages: pl.DataFrame, limit: int) -> pl.DataFrame:
    # Another hash than the one that splits: else the documents kept would be the held-out ones.
    order = passages["document_hash"].to_numpy() * _MIX
    rank = pl.col("order").rank("dense").over("source")
    return passages.with_columns(order=pl.Series(order)).filter(rank <= limit).drop("order")


def _parts(split: str, passages: pl.DataFrame, first_number: int) -> list[Part]:
    assert split in SPLITS
    size = min(max(LEAST_PART_ROWS, -(-len(passages) // USUAL_PARTS)), MOST_PART_ROWS)
    parts = []
    for start in range(0, len(passages), size):
        shard = passages["shard"][start : start + size].to_numpy()
        row = passages["row"][start : start + size].to_numpy()
        rows_of_shard = [(int(number), row[shard == number]) for number in np.unique(shard)]
        parts.append(Part(split=split, number=first_number + len(parts), rows_of_shard=rows_of_shard))
    return parts


def _sources(passages: pl.DataFrame, train: pl.DataFrame, held_out: pl.DataFrame) -> pa.Table:
    table = (
        passages.group_by("source")
        .agg(documents=pl.col("document_hash").n_unique(), unseen=pl.col("unseen").first())
        .join(train.group_by("source").len("train_passages"), on="source", how="left")
        .join(held_out.group_by("source").len("held_out_passages"), on="source", how="left")
        .fill_null(0)
        .sort("source")
    )
    return table.select(SOURCES.names).to_arrow().cast(SOURCES)
