"""The sources of a corpus: how many documents and kept passages each has."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from pipeline.passages.parts import CODE_OF_SPLIT
from storage_schema.arrow_files import read_parquet
from storage_schema.corpus import SOURCES
from storage_schema.errors import UserError

OUTCOMES = {"trained on": "train", "held out": "held_out"}
"""What becomes of a document, and the split that it is in."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A shard, and the positions of its passages among those of all shards."""

    path: Path
    first: int
    rows: int


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


def count_kept(shards: Sequence[Shard], decisions: Path) -> tuple[pl.DataFrame, dict[str, int]]:
    """What is kept of some shards: the passages of each source by split, and how many documents have a passage that is
    kept, by split. A document lies in one shard.
    """
    passages: list[pl.DataFrame] = []
    documents = dict.fromkeys(OUTCOMES, 0)
    for shard in shards:
        table = read_parquet(shard.path, columns=["source", "document_hash"])
        code = np.fromfile(decisions, np.uint8, shard.rows, offset=shard.first)
        for name, split in OUTCOMES.items():
            hashes = table["document_hash"].to_numpy()[code == CODE_OF_SPLIT[split]]
            documents[name] += len(np.unique(hashes))
        rows = pl.DataFrame(table.select(["source"])).select(pl.col("source").cast(pl.String), code=code)
        passages.append(_passages(rows))
    return pl.concat(passages).group_by("source").sum(), documents


def sources_table(sources: pl.DataFrame, kept: Sequence[pl.DataFrame]) -> pa.Table:
    """The sources with their numbers of documents and of kept passages (columns of ``SOURCES``).

    Args:
        kept: from :func:`count_kept`, for all shards.
    """
    table = sources.join(pl.concat(kept).group_by("source").sum(), on="source", how="left").sort("source")
    return table.fill_null(0).select(SOURCES.names).to_arrow().cast(SOURCES)


def _passages(rows: pl.DataFrame) -> pl.DataFrame:
    counted = {f"{split}_passages": (pl.col("code") == code).sum() for split, code in CODE_OF_SPLIT.items()}
    return rows.group_by("source").agg(**counted)
