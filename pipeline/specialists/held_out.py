"""The held-out text of a store as specialist sets, and as the generic mixture that the training never saw.

Memory holds the samples and one part of the passages, however much text is held out.
"""

from __future__ import annotations

import hashlib
import heapq
import re
from collections import Counter
from itertools import chain
from pathlib import Path

import polars as pl

from pipeline.passages.parts import scan_part
from pipeline.specialists.sets import FOLDER, LEAST_TEXTS, SpecialistSet, numbered, taken
from storage_schema.arrow_files import errors_name, read_parquet
from storage_schema.corpus import part_files
from storage_schema.errors import UserError
from storage_schema.layout import store_and_additions
from storage_schema.manifest import read_manifest


def held_out_sets(
    store: str | Path,
    *,
    max_texts: int,
    evaluation_passages: int,
    max_sets: int,
    num_volumes: int | None = None,
) -> list[SpecialistSet]:
    """The held-out sources of a store that have enough passages: wholly unseen ones first, then by size.

    Args:
        store: the store's folder.
        evaluation_passages: a set has at least so many passages to evaluate on.
        num_volumes: of the store and its additions only the first so many; None: all.

    Raises:
        ValueError: if no source has enough.
    """
    parts, sizes = _held_out(store, num_volumes), Counter[str]()
    for part in parts:
        with errors_name(part):
            sizes.update(dict(scan_part(part, "source").group_by("source").len().collect().iter_rows()))
    unseen = set(_sources(store, num_volumes).filter("unseen")["source"])
    kinds: list[list[SpecialistSet]] = [[], []]
    for source, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
        kind = kinds[source not in unseen]
        if len(kind) < max_sets and size >= evaluation_passages + LEAST_TEXTS:
            sample = _sample(parts, source, evaluation_passages, max(max_texts, LEAST_TEXTS))
            made = _split(source, sample, max_texts, evaluation_passages, unseen_source=source in unseen)
            kind += [made] if made is not None else []
    if not any(kinds):
        raise UserError(
            f"no held-out source of {store} has {LEAST_TEXTS} passages and {evaluation_passages} more to evaluate "
            "on. Hold out more when building the store, or lower evaluation_passages."
        )
    # Unseen and seen sources alternate, so that max_sets keeps both kinds.
    mixed = [made for pair in zip(*_padded(kinds), strict=True) for made in pair if made is not None]
    return mixed[:max_sets]


def generic_evaluation(store: str | Path, *, passages: int) -> list[str]:
    """Held-out passages of the sources that were trained on, at most so many, chosen by hash: the generic
    mixture as the training never saw it.
    """
    seen = _sources(store).filter(~pl.col("unseen"))["source"].implode()
    kept: list[tuple[bytes, str]] = []
    for part in _held_out(store):
        with errors_name(part):
            texts = scan_part(part, "source", "text").filter(pl.col("source").is_in(seen)).collect()["text"]
        hashed = ((hashlib.sha256(text.encode()).digest(), text) for text in texts)
        kept = heapq.nsmallest(passages, chain(kept, hashed))
    return [text for _, text in kept]


def _sources(store: str | Path, num_volumes: int | None = None) -> pl.DataFrame:
    """The sources of a store and its additions, and whether they are unseen."""
    volumes = store_and_additions(store)[:num_volumes]
    files = [part / "passages" / "sources.parquet" for part in volumes]
    tables = [pl.from_arrow(read_parquet(file, ["source", "unseen"])) for file in files]
    return pl.concat(tables).unique(maintain_order=True)


def _held_out(store: str | Path, num_volumes: int | None = None) -> list[Path]:
    """The held-out part files of a store and its additions."""
    read_manifest(Path(store) / "passages", "passages")
    files = [
        file
        for part in store_and_additions(store)[:num_volumes]
        for file in part_files(part / "passages", "held_out")
    ]
    if not files:
        raise UserError(f"{store} holds out no text. Build it with held_out_sources or held_out_fraction.")
    return files


def _sample(parts: list[Path], source: str, evaluation_passages: int, texts: int) -> pl.DataFrame:
    """The documents and texts of a source that :func:`_split` can come to, out of all that the parts hold: those with
    the smallest hashes, until there are enough passages to evaluate on and so many texts more.
    """
    chosen = pl.DataFrame(schema={"key": pl.UInt64, "document_id": pl.String, "length": pl.UInt32})
    ends = pl.col("length").cum_sum()
    evaluated = ends.filter(ends >= evaluation_passages).min()
    for part in parts:
        rows = scan_part(part, "source", "document_id").filter(source=source)
        with errors_name(part):
            found = rows.group_by("document_id").agg(length=pl.len()).collect()
        keys = pl.Series("key", map(_key, found["document_id"]), pl.UInt64)
        chosen = pl.concat([chosen, found.select(keys, "document_id", "length")])
        chosen = chosen.group_by("key", "document_id").sum().sort("key")
        # What is left out here is not needed later: the documents before it only become longer.
        chosen = chosen.filter((ends - pl.col("length") < evaluated + texts).fill_null(True))
    wanted = chosen["document_id"].implode()
    frames = []
    for part in parts:
        rows = scan_part(part, "source", "document_id", "text").filter(source=source)
        with errors_name(part):
            frames.append(rows.filter(pl.col("document_id").is_in(wanted)).drop("source").collect())
    return pl.concat(frames)


def _key(document_id: str) -> int:
    """The beginning of the hash by which documents are ordered."""
    return int.from_bytes(hashlib.sha256(document_id.encode()).digest()[:8])


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
