"""Specialist sets: a few texts that say what a specialist is for, and others to measure it on.

From a store, every held-out source with enough passages is one. Whole documents go to one side or the
other, so nothing a specialist is measured on comes from a document that chose its domain weights.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from pipeline.passages import part_files
from storage_schema.layout import store_parts
from storage_schema.manifest import read_manifest

LEAST_TEXTS = 20


@dataclass(frozen=True, kw_only=True)
class SpecialistSet:
    """One specialist set."""

    name: str
    texts: list[str]
    """Passages that estimate the domain weights."""
    evaluation: list[str]
    """Other passages; empty if none were asked for."""
    unseen_source: bool = False
    """No document of this source was trained on."""


def held_out_sets(
    store: str | Path, *, max_texts: int, evaluation_passages: int, max_sets: int
) -> list[SpecialistSet]:
    """The held-out sources of a store that have enough passages: wholly unseen ones first, then by size.

    Args:
        store: the store's folder.
        evaluation_passages: a set has at least so many passages to evaluate on.

    Raises:
        ValueError: if no source has enough.
    """
    passages = _held_out(store)
    sources = _sources(store)
    unseen = set(sources.filter("unseen")["source"])
    found = []
    for (source,), frame in passages.group_by("source", maintain_order=True):
        made = _split(source, frame, max_texts, evaluation_passages, unseen_source=source in unseen)
        if made is not None:
            found.append((not made.unseen_source, -len(frame), source, made))
    if not found:
        raise ValueError(
            f"no held-out source of {store} has {LEAST_TEXTS} passages and {evaluation_passages} more to evaluate "
            "on. Hold out more when building the store, or lower evaluation_passages."
        )
    chosen = sorted(found, key=lambda row: row[:3])
    # Unseen and seen sources alternate, so that max_sets keeps both kinds.
    kinds = [[row[3] for row in chosen if row[0] is seen] for seen in (False, True)]
    mixed = [made for pair in zip(*_padded(kinds), strict=True) for made in pair if made is not None]
    return mixed[:max_sets]


def generic_evaluation(store: str | Path, *, passages: int) -> list[str]:
    """Held-out passages of the sources that were trained on, at most so many, chosen by hash: the generic
    mixture as the training never saw it.
    """
    sources = _sources(store)
    seen = sources.filter(~pl.col("unseen"))["source"]
    frame = _held_out(store).filter(pl.col("source").is_in(seen.implode()))
    ranked = sorted(frame["text"], key=lambda text: hashlib.sha256(text.encode()).digest())
    return ranked[:passages]


def _sources(store: str | Path) -> pl.DataFrame:
    """The sources of a store and its additions, and whether they are unseen."""
    tables = [pl.read_parquet(part / "passages" / "sources.parquet") for part in store_parts(store)]
    return pl.concat(tables).select("source", "unseen").unique(maintain_order=True)


def _held_out(store: str | Path) -> pl.DataFrame:
    read_manifest(Path(store) / "passages", "passages")
    files = [file for part in store_parts(store) for file in part_files(part / "passages", "held_out")]
    if not files:
        raise ValueError(f"{store} holds out no text. Build it with held_out_sources or held_out_fraction.")
    return pl.concat([pl.read_parquet(file) for file in files])


def _split(
    source: str, frame: pl.DataFrame, max_texts: int, evaluation_passages: int, *, unseen_source: bool
) -> SpecialistSet | None:
    """Deal whole documents, in the order of their hashes, to evaluation until it has enough, then to texts."""
    documents = frame.group_by("document_id").agg("text")
    ranked = sorted(documents.iter_rows(), key=lambda row: hashlib.sha256(row[0].encode()).digest())
    texts: list[str] = []
    evaluation: list[str] = []
    for _, document in ranked:
        (evaluation if len(evaluation) < evaluation_passages else texts).extend(document)
    if len(evaluation) < evaluation_passages or len(texts) < LEAST_TEXTS:
        return None
    return SpecialistSet(
        name=source,
        texts=texts[:max_texts],
        evaluation=evaluation[:evaluation_passages],
        unseen_source=unseen_source,
    )


def _padded(columns: list[list]) -> list[list]:
    longest = max(map(len, columns))
    return [[*column, *[None] * (longest - len(column))] for column in columns]
