"""The sources of a corpus: how many documents and kept passages each has."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from pipeline.passages.parts import CODE_OF_SPLIT
from storage_schema.arrow_files import read_parquet
from storage_schema.corpus import SOURCES
from storage_schema.errors import UserError


def documents_per_source(rows: pl.DataFrame) -> pl.DataFrame:
    """Sources with their numbers of documents. A document lies in one shard, so the numbers of shards add up."""
    return rows.group_by("source").agg(
        documents=pl.col("document_hash").n_unique(), unseen=pl.col("unseen").first()
    )


def merged(found: list[pl.DataFrame]) -> pl.DataFrame:
    """The sources of several shards, with their documents added up."""
    return pl.concat(found).group_by("source").agg(pl.col("documents").sum(), pl.col("unseen").first())


def check_held_out(known: set[str], held_out: Sequence[str]) -> None:
    """Raise ValueError for a held-out source that the corpus does not have."""
    for name in held_out:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=5, cutoff=0.5) or sorted(known)[:5]
            raise UserError(
                f"held_out_sources names {name!r}, which is not one of the corpus's {len(known)} sources. "
                f"Near names: {', '.join(near)}."
            )


def documents_by_outcome(shards: Sequence[Path], decided: np.ndarray, edges: np.ndarray) -> dict[str, int]:
    """How many documents have a passage that is kept, by split. A document lies in one shard."""
    names = ("trained on", "held out")
    kept = dict.fromkeys(names, 0)
    for number, shard in enumerate(shards):
        hashes = read_parquet(shard, columns=["document_hash"])["document_hash"].to_numpy()
        for name, code in zip(names, CODE_OF_SPLIT.values(), strict=True):
            kept[name] += len(np.unique(hashes[decided[edges[number] : edges[number + 1]] == code]))
    return kept


def sources_table(
    shards: Sequence[Path], sources: pl.DataFrame, decided: np.ndarray, edges: np.ndarray
) -> pa.Table:
    """The sources with their numbers of documents and of kept passages (columns of ``SOURCES``).

    Args:
        decided: uint8, one decision per passage of all shards.
        edges: where each shard's passages begin in `decided`, and where the last ones end.
    """
    kept: list[pl.DataFrame] = []
    for number, shard in enumerate(shards):
        names = pl.from_arrow(read_parquet(shard, columns=["source"]))["source"].cast(pl.String)
        rows = pl.DataFrame({"source": names, "code": decided[edges[number] : edges[number + 1]]})
        kept.append(_passages(rows))
        if len(kept) > 64:
            kept = [pl.concat(kept).group_by("source").sum()]
    table = sources.join(pl.concat(kept).group_by("source").sum(), on="source", how="left").sort("source")
    return table.fill_null(0).select(SOURCES.names).to_arrow().cast(SOURCES)


def _passages(rows: pl.DataFrame) -> pl.DataFrame:
    counted = {f"{split}_passages": (pl.col("code") == code).sum() for split, code in CODE_OF_SPLIT.items()}
    return rows.group_by("source").agg(**counted)
