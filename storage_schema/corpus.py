"""Passages (Parquet) and their embeddings (Arrow).

    <store>/passages/{train,held_out}/part-00000.parquet
    <store>/passages/sources.parquet             one row per source: its documents, and its passages in each split
    <store>/embeddings/part-00000.arrow          one file per training part, with the same rows in the same order

Training parts are numbered first, then held-out parts, so ``part number << 32 | row`` is unique in the store. The
parts of an addition continue the numbers of the parts before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SPLITS = ("train", "held_out")
_AT_ONCE = 16
"""Footers that are read at once: a corpus may have 100,000 parts, on a disk that a network answers for."""

PASSAGES = pa.schema(
    [
        pa.field("passage_id", pa.int64(), nullable=False),  # unique in the store: part number << 32 | row
        pa.field("document_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("text", pa.large_string(), nullable=False),
        pa.field(
            "text_hash", pa.uint64(), nullable=False
        ),  # equal for equal texts: what is dropped as a duplicate
    ]
)

SOURCES = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("documents", pa.int64(), nullable=False),
        pa.field("train_passages", pa.int64(), nullable=False),
        pa.field("held_out_passages", pa.int64(), nullable=False),
        pa.field("unseen", pa.bool_(), nullable=False),  # held out by name: no document of it is in training
    ]
)


def embeddings_schema(size: int) -> pa.Schema:
    """Arrow schema of the embeddings: ``passage_id`` and a unit-norm vector of `size` float16."""
    return pa.schema(
        [
            pa.field("passage_id", pa.int64(), nullable=False),
            pa.field("embedding", pa.list_(pa.float16(), size), nullable=False),
        ]
    )


def part_name(number: int, suffix: str) -> str:
    """``part-00042.parquet`` and the like."""
    return f"part-{number:05d}.{suffix}"


def part_files(folder: str | Path, split: str) -> list[Path]:
    """The part files of one split of a finished ``passages`` folder, in order."""
    return sorted((Path(folder) / split).glob("part-*.parquet"))


def rows_of(files: Sequence[Path]) -> list[int]:
    """How many rows each Parquet file has, by its footer."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(lambda file: pq.read_metadata(file).num_rows, files))
