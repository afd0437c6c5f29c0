"""The held-out text of a store as specialist sets, and as the generic mixture that the training never saw."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import polars as pl

from pipeline.specialists.sets import FOLDER, LEAST_TEXTS, SpecialistSet, numbered, taken
from storage_schema.arrow_files import read_parquet
from storage_schema.corpus import part_files
from storage_schema.errors import UserError
from storage_schema.layout import store_and_additions
from storage_schema.manifest import read_manifest


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
        raise UserError(
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
    files = [part / "passages" / "sources.parquet" for part in store_and_additions(store)]
    tables = [pl.from_arrow(read_parquet(file, ["source", "unseen"])) for file in files]
    return pl.concat(tables).unique(maintain_order=True)


def _held_out(store: str | Path) -> pl.DataFrame:
    read_manifest(Path(store) / "passages", "passages")
    files = [
        file for part in store_and_additions(store) for file in part_files(part / "passages", "held_out")
    ]
    if not files:
        raise UserError(f"{store} holds out no text. Build it with held_out_sources or held_out_fraction.")
    return pl.concat([pl.from_arrow(read_parquet(file, ["document_id", "source", "text"])) for file in files])


def _split(
    source: str, frame: pl.DataFrame, max_texts: int, evaluation_passages: int, *, unseen_source: bool
) -> SpecialistSet | None:
    """Deal whole documents, in the order of their hashes, to evaluation until it has enough, then to texts.

    Where too little is left for texts, as when one document is most of the source, they are shared as a user's are.
    """
    documents = frame.group_by("document_id").agg("text")
    ranked = sorted(documents.iter_rows(), key=lambda row: hashlib.sha256(row[0].encode()).digest())
    left: list[list[str]] = []
    evaluation: list[str] = []
    for _, document in ranked:
        if len(evaluation) < evaluation_passages:
            evaluation.extend(document)
        else:
            left.append(document)
    if sum(map(len, left)) < LEAST_TEXTS:
        left = [list(document) for _, document in ranked]
        evaluation = taken(left, evaluation_passages)
    if len(evaluation) < evaluation_passages or sum(map(len, left)) < LEAST_TEXTS:
        return None
    texts, numbers = numbered(left, max_texts)
    return SpecialistSet(
        name=_folder_name(source),
        texts=texts,
        evaluation=evaluation[:evaluation_passages],
        documents=numbers,
        unseen_source=unseen_source,
    )


def _folder_name(source: str) -> str:
    """A source's name, if it can be that of a folder; it comes from the documents, and may be a path or anything."""
    if FOLDER.fullmatch(source):
        return source
    digest = hashlib.sha256(source.encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '-', source)[:60].strip('-')}-{digest}".lstrip("-")


def _padded(columns: list[list]) -> list[list]:
    longest = max(map(len, columns))
    return [[*column, *[None] * (longest - len(column))] for column in columns]
