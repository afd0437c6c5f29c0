"""A bounded sample of the training text, for the tokenizer. Tasks read it and write it to files.

A document's hash decides whether it is in the sample, so the sample is spread over all documents, and is the same
whatever the parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.passages.cutting import text_hash
from pipeline.passages.parts import scan_part
from storage_schema.arrow_files import errors_name, read_parquet
from storage_schema.aside import written_aside
from storage_schema.corpus import part_files
from storage_schema.errors import UserError
from storage_schema.stage import RunTasks

DOCUMENT_CHARACTERS = 20_000
PURPOSE = "tokenizer sample"
"""Makes the hash that draws the sample independent of the hash that draws the held-out documents."""
LEAST_SHARE = 0.01
MARGIN = 16
"""Tasks look at so many times the documents that the sample needs on average, because documents differ in length."""
GROUP_BYTES = 8 << 20
"""Of part files that one task reads, as they are stored."""
TEXTS = pa.schema([("document_id", pa.string()), ("text", pa.large_string())])
"""Of the sample's files: passages, in order."""
_LENGTHS = pl.DataFrame(schema={"key": pl.UInt64, "length": pl.Int64})


class TextSample:
    """The texts of the documents with the smallest hashes, at most ``DOCUMENT_CHARACTERS`` per document.

    If that gives less than ``LEAST_SHARE`` of the characters asked for (from a few books, say), each document may give
    an even share of them. Of each part, only the text of the chosen documents is read.
    """

    def __init__(self, passages: Path, limit: int, total: int, run: RunTasks):
        self.groups, self.limit, self.total, self.run = _groups(passages), limit, total, run
        self.document_characters = DOCUMENT_CHARACTERS
        documents = self._choose()
        wanted = min(limit, total)
        if self.characters < LEAST_SHARE * wanted:
            self.document_characters = max(DOCUMENT_CHARACTERS, wanted // max(1, documents))
            self._choose()
        if not self.characters:
            raise UserError(
                f"the tokenizer's sample is empty: {passages} has no training text. Hold out less, or give a tokenizer."
            )

    def write(self, folder: Path) -> None:
        """Write the sample's texts to files in `folder`, for :func:`batches_of`."""
        numbered = [
            (folder / f"sample-{number:06d}.parquet", group) for number, group in enumerate(self.groups)
        ]
        self.run(write_texts, [(*one, self.last, self.document_characters) for one in numbered])

    def _choose(self) -> int:
        """Set the largest hash of the sample and its characters; returns how many documents there are.

        The tasks return only documents of small hashes, so that this process needs no more memory for a larger corpus.
        """
        share = min(1.0, MARGIN * self.limit / max(1, self.total))
        bounded = pl.col("length").clip(upper_bound=self.document_characters)
        while True:
            last = 2**64 - 1 if share == 1 else int(share * 2**64)
            found = self.run(lengths_of_documents, [(group, last) for group in self.groups])
            kept = pl.concat([_LENGTHS, *(lengths for lengths, _ in found)]).group_by("key").sum().sort("key")
            kept = kept.filter(bounded.cum_sum() - bounded < self.limit)
            self.characters = int(kept.select(bounded.sum()).item())
            if share == 1 or self.characters >= self.limit:
                break
            share = min(1.0, MARGIN * share)
        self.last = kept["key"].max() or 0
        return sum(documents for _, documents in found)


def lengths_of_documents(parts: Sequence[Path], last: int) -> tuple[pl.DataFrame, int]:
    """Of the documents in some parts whose hash is at most `last`, the hash (``key``) and the characters (``length``);
    and how many documents there are with any hash. One that lies in two parts is in both.
    """
    found, documents = [_LENGTHS], 0
    for part in parts:
        with errors_name(part):
            lengths = (
                scan_part(part, "document_id", "text")
                .group_by("document_id")
                .agg(length=pl.col("text").str.len_chars().cast(pl.Int64).sum())
                .collect(engine="streaming")
            )
        keys = [text_hash(name, purpose=PURPOSE) for name in lengths["document_id"]]
        lengths = lengths.select(pl.Series("key", keys, pl.UInt64), "length")
        found.append(lengths.filter(pl.col("key") <= last))
        documents += len(lengths)
    return pl.concat(found).group_by("key").sum(), documents


def write_texts(path: Path, parts: Sequence[Path], last: int, most: int) -> None:
    """Write the passages in some parts, in order, of the documents whose hash is at most `last`.

    Args:
        most: characters of a document.
    """
    names_N: list[str] = []
    texts_N: list[str] = []
    document, taken = None, 0
    for part in parts:
        with errors_name(part):
            rows = scan_part(part, "document_id", "text")
            names = rows.select(pl.col("document_id").unique()).collect()["document_id"]
            chosen = [name for name in names if text_hash(name, purpose=PURPOSE) <= last]
            found = rows.filter(pl.col("document_id").is_in(chosen)).collect()
        for name, text in found.iter_rows():
            if name != document:
                document, taken = name, 0
            if taken < most:
                names_N.append(name)
                texts_N.append(text[: most - taken])
            taken += len(text)
    if texts_N:
        with written_aside(path) as aside:
            pq.write_table(pa.table([names_N, texts_N], schema=TEXTS), aside)


def batches_of(folder: Path, most: int) -> Iterator[list[str]]:
    """The texts that :meth:`TextSample.write` wrote, in order, up to `most` characters of each document."""
    document, taken = None, 0
    for path in sorted(folder.glob("sample-*.parquet")):
        batch: list[str] = []
        found = read_parquet(path, TEXTS.names)
        for name, text in zip(found["document_id"].to_pylist(), found["text"].to_pylist(), strict=True):
            if name != document:
                document, taken = name, 0
            if kept := text[: most - taken]:
                batch.append(kept)
            taken += len(kept)
        if batch:
            yield batch


def _groups(passages: Path) -> list[list[Path]]:
    """The training parts in order, in groups of about ``GROUP_BYTES``."""
    groups: list[list[Path]] = []
    room = 0
    for part in part_files(passages, "train"):
        size = part.stat().st_size
        if not groups or size > room:
            groups.append([])
            room = GROUP_BYTES
        groups[-1].append(part)
        room -= size
    return groups
