"""The decision on each passage, one byte on disk, and the parts in which the kept passages are written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from storage_schema.corpus import SPLITS

LEAST_PART_ROWS, MOST_PART_ROWS, USUAL_PARTS = 256, 16_384, 64
DROPPED = 0
CODE_OF_SPLIT = {split: code for code, split in enumerate(SPLITS, start=1)}
"""A decision is one byte: the passage is dropped, or goes to a split."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part to write: consecutive passages of a split, in the order of shards and rows."""

    split: str
    number: int
    """Unique over both splits; training parts come first."""
    shards: list[tuple[int, int, int]]
    """For each shard it takes passages from: its number, and where its decisions begin and end among all."""
    skip: int
    """How many passages of this split in the first shard belong to earlier parts."""
    rows: int


def scan_part(path: Path, *columns: str) -> pl.LazyFrame:
    """Columns of a part file, unread. The path is taken as it is: it may hold a ``[`` or a ``=``."""
    return pl.scan_parquet(path, glob=False, hive_partitioning=False).select(columns)


def parts_of_split(split: str, decided: np.ndarray, edges: np.ndarray, first_number: int) -> Iterator[Part]:
    """The parts of a split, numbered from `first_number`. All but the last have the same number of rows.

    Args:
        decided: uint8, one decision per passage of all shards.
        edges: where each shard's passages begin in `decided`, and where the last ones end.
    """
    code = CODE_OF_SPLIT[split]
    kept_S = [np.count_nonzero(decided[a:b] == code) for a, b in zip(edges, edges[1:], strict=False)]
    before_S = np.cumsum([0, *kept_S])
    total = int(before_S[-1])
    size = min(max(LEAST_PART_ROWS, -(-total // USUAL_PARTS)), MOST_PART_ROWS)
    for number, start in enumerate(range(0, total, size)):
        stop = min(start + size, total)
        first = int(np.searchsorted(before_S, start, side="right")) - 1
        last = int(np.searchsorted(before_S, stop, side="left"))
        yield Part(
            split=split,
            number=first_number + number,
            shards=[(s, int(edges[s]), int(edges[s + 1])) for s in range(first, last) if kept_S[s]],
            skip=start - int(before_S[first]),
            rows=stop - start,
        )


def rows_of(part: Part, decisions: Path) -> Iterator[np.ndarray]:
    """For each of the part's shards, the rows that the part takes from it."""
    code = CODE_OF_SPLIT[part.split]
    skip, left = part.skip, part.rows
    with open(decisions, "rb") as file:
        for _, begin, end in part.shards:
            file.seek(begin)
            rows = np.flatnonzero(np.fromfile(file, np.uint8, end - begin) == code)[skip : skip + left]
            skip, left = 0, left - len(rows)
            yield rows
