"""Dealing the hashes of all passages out to buckets, in tasks, each of which reads the hashes of some shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from pipeline.passages.buckets import PRESENT, write_dealt
from pipeline.passages.parts import scan_part
from pipeline.passages.sources import Shard, documents_per_source, merged
from storage_schema.arrow_files import read_parquet
from storage_schema.stage import RunTasks

GROUP_ROWS, MOST_SHARDS = 1 << 20, 256
"""A task reads the hashes of about so many passages, from at most so many files."""
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


def grouped(shards: Sequence[Path], rows_S: Sequence[int]) -> Iterator[list[Shard]]:
    """The shards in order, in groups of about ``GROUP_ROWS`` passages, each with its first position."""
    group: list[Shard] = []
    position = first = 0
    for path, rows in zip(shards, rows_S, strict=True):
        if group and (position + rows - first > GROUP_ROWS or len(group) == MOST_SHARDS):
            yield group
            group, first = [], position
        group.append(Shard(path=path, first=position, rows=rows))
        position += rows
    if group:
        yield group


def deal_out(
    groups: Sequence[list[Shard]],
    selection: Selection,
    dealt: Path,
    buckets: int,
    present: Sequence[Path],
    run: RunTasks,
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Write every passage's hash to its bucket, in the folder `dealt`.

    Returns:
        The sources with their numbers of documents, and how many documents and passages exceed
        ``max_documents_per_source``.
    """
    last_orders = None
    if (limit := selection.max_documents_per_source) is not None:
        lowest = run(lowest_orders, [(group, limit) for group in groups])
        last_orders = dealt / "last-orders.parquet"
        _lowest(pl.concat(lowest), limit).group_by("source").agg(last=pl.col("order").max()).write_parquet(
            last_orders
        )
    given = [
        (group, selection, last_orders, buckets, dealt / f"dealt-{number:05d}.arrow")
        for number, group in enumerate(groups)
    ]
    found = run(deal_shards, given)
    parts = [list(present[first : first + MOST_SHARDS]) for first in range(0, len(present), MOST_SHARDS)]
    run(
        deal_present,
        [(some, buckets, dealt / f"dealt-{len(given) + n:05d}.arrow") for n, some in enumerate(parts)],
    )
    over = {name: sum(of_group[name] for _, of_group in found) for name in ("documents", "passages")}
    return merged([sources for sources, _ in found]), over


def deal_shards(
    shards: Sequence[Shard], selection: Selection, last_orders: Path | None, buckets: int, path: Path
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Deal the hashes of some shards out to a file; returns their sources and what is over the limit, as
    :func:`deal_out` does.
    """
    rows = _read_hashes(shards)
    over = {"documents": 0, "passages": 0}
    if last_orders is not None:
        every = rows
        rows = rows.join(scan_part(last_orders, "source", "last").collect(), on="source")
        rows = rows.filter(pl.col("order") <= pl.col("last"))
        over["documents"] = every["document_hash"].n_unique() - rows["document_hash"].n_unique()
        over["passages"] = len(every) - len(rows)
    unseen = pl.col("source").is_in(list(selection.held_out_sources))
    by_hash = pl.col("document_hash") < int(selection.held_out_fraction * 2**64)
    rows = rows.with_columns(unseen=unseen, held_out=unseen | by_hash).sort("position")
    write_dealt(rows, buckets, path)
    return documents_per_source(rows), over


def deal_present(parts: Sequence[Path], buckets: int, path: Path) -> None:
    """Deal the hashes of part files of the store out to a file."""
    hashes = pl.concat([pl.DataFrame(read_parquet(part, columns=["text_hash"])) for part in parts])
    position = pl.lit(PRESENT, pl.Int64)
    write_dealt(hashes.with_columns(position=position, held_out=pl.lit(False)), buckets, path)


def lowest_orders(shards: Sequence[Shard], limit: int) -> pl.DataFrame:
    """The sources of some shards, each with the `limit` smallest ``order`` of its documents."""
    return _lowest(_read_hashes(shards).select("source", "order"), limit)


def _lowest(orders: pl.DataFrame, limit: int) -> pl.DataFrame:
    return orders.unique().filter(pl.col("order").rank("ordinal").over("source") <= limit)


def _read_hashes(shards: Sequence[Shard]) -> pl.DataFrame:
    columns = ["source", "document_hash", "text_hash"]
    tables = [pl.DataFrame(read_parquet(shard.path, columns)) for shard in shards]
    table = pl.concat([table.with_columns(pl.col("source").cast(pl.String)) for table in tables])
    # This must not be the hash that decides the split: else the documents kept would be the held-out ones.
    order = table["document_hash"].to_numpy() * _MIX
    position = np.arange(shards[0].first, shards[0].first + len(table), dtype=np.int64)
    return table.with_columns(order=pl.Series(order), position=pl.Series(position))
