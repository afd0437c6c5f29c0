"""Cutting a corpus into shares, so that every task has a bounded number of bytes and of files to read.

An uncompressed file of JSON lines is cut where a line begins, a Parquet file between two row groups. A document's id
holds the number of its line or row in the whole file, so each piece knows how many come before it. Thus the cuts
change no document and no order. To know the numbers, line ends are counted first, as fast as the disk reads.

Compressed files and saved datasets cannot be read from the middle, so they stay whole. Of small files, a task reads at
most ``MOST_FILES``: opening each takes time, on S3 a request.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.documents import Corpus, CorpusFile, Piece
from pipeline.places.locations import open_filesystem
from pipeline.places.retries import with_retries
from pipeline.tasks import run_tasks
from storage_schema.json_files import read_object
from storage_schema.manifest import StoreError, canonical_json, write_atomically

MOST_FILES, LOOKED_AT = 500, 8
_BLOCK = 8 << 20
"""As much is read at once, on S3 in one request."""
_OBJECTS = re.compile(rb"(\xef\xbb\xbf)?\s*\{[^\S\n]*\S")
"""How a file of JSON objects in UTF-8 begins. Any other file named as JSON lines is not cut."""


@dataclass(frozen=True, slots=True)
class UndividedFile:
    """A file of which one task must read much."""

    name: str
    bytes: int
    """What one task reads at once of the file, as it is stored."""
    reason: str
    """Such as ``is compressed (gzip)``."""


def bounded_groups(
    corpus: Corpus, bytes_per_group: int, record: Path
) -> list[tuple[int, tuple[CorpusFile, ...]]]:
    """The groups of the corpus (:meth:`Corpus.groups`) with their numbers. A group that is one large file is given
    as one entry per piece, and one of many small files as one per ``MOST_FILES``, each with the group's number.

    Args:
        record: the file that keeps the cuts, so that a resumed build has the same pieces.
    """
    groups = corpus.groups(bytes_per_group)
    large = [file for file in corpus.files if file.bytes > 2 * bytes_per_group]
    if large and not record.exists():
        cuts = _cut_lines(corpus.uri, large, bytes_per_group) | _cut_parquet(
            corpus.uri, large, bytes_per_group
        )
        write_atomically(record, canonical_json(cuts))
    cut = read_object(record) if large else {}
    pieces = {file.name: _pieces(file, cut[file.name]) for file in large if cut.get(file.name)}
    return [
        (number, files)
        for number, group in enumerate(groups)
        for files in pieces.get(group[0].name) or _bounded(group)
    ]


def undivided_files(corpus: Corpus, bytes_per_group: int) -> list[UndividedFile]:
    """The files of which one task must read more than twice `bytes_per_group`, the largest first.

    Of Parquet, only the :data:`LOOKED_AT` largest files are opened.
    """
    large = [file for file in corpus.files if file.bytes > 2 * bytes_per_group]
    found = []
    for file in large:
        if file.format == "lines" and file.compression:
            found.append(UndividedFile(file.name, file.bytes, f"is compressed ({file.compression})"))
        elif file.format == "arrow":
            found.append(UndividedFile(file.name, file.bytes, "is a stream of a saved dataset"))
    tables = [file for file in large if file.format == "parquet"]
    for file in sorted(tables, key=lambda file: -file.bytes)[:LOOKED_AT]:
        groups = [size for size, _ in row_groups(corpus.uri, file.path)] or [0]
        most = int(file.bytes * max(groups) / max(1, sum(groups)))
        if most > 2 * bytes_per_group:
            found.append(UndividedFile(file.name, most, "has a large row group"))
    return sorted(found, key=lambda file: (-file.bytes, file.name))


def count_line_ends(uri: str, path: str, begin: int, end: int) -> tuple[int, int] | None:
    """Count the line ends in bytes [begin, end) of a file, and find where the first line after one of them begins.

    The second number is -1 if no line ends there. None if the bytes cannot be read, even after some time, or the file
    does not begin as a file of JSON objects does.
    """

    def count() -> tuple[int, int] | None:
        number, first = 0, -1
        with open_filesystem(uri)[0].open_input_file(path) as file:
            if begin == 0 and not _OBJECTS.match(file.read_at(_BLOCK, 0)):
                return None
            for start in range(begin, end, _BLOCK):
                block = file.read_at(min(_BLOCK, end - start), start)
                if first < 0 and b"\n" in block:
                    first = start + block.index(b"\n") + 1
                number += block.count(b"\n")
        return number, first

    try:
        return with_retries(count, uri=path, store=uri, what="The corpus")
    except StoreError:
        return None  # the reader will report it


def row_groups(uri: str, path: str) -> list[tuple[int, int]]:
    """Uncompressed bytes and rows of each row group of a Parquet file; empty if it cannot be read, even later."""

    def read() -> list[tuple[int, int]]:
        with open_filesystem(uri)[0].open_input_file(path) as file:
            metadata = pq.read_metadata(file)
            groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
            return [(group.total_byte_size, group.num_rows) for group in groups]

    try:
        return with_retries(read, uri=path, store=uri, what="The corpus")
    except (StoreError, pa.ArrowException):
        return []


def _bounded(group: tuple[CorpusFile, ...]) -> list[tuple[CorpusFile, ...]]:
    return [group[first : first + MOST_FILES] for first in range(0, len(group), MOST_FILES)]


def _pieces(file: CorpusFile, cuts: Sequence[Sequence[int]]) -> list[tuple[CorpusFile]]:
    return [(replace(file, bytes=size, piece=Piece(*ends)),) for size, *ends in cuts]


def _cut_lines(uri: str, large: Sequence[CorpusFile], step: int) -> dict[str, list]:
    """For each file of lines its pieces, each as its size in bytes and the three numbers of a :class:`Piece`."""
    files = [file for file in large if file.format == "lines" and file.compression is None]
    spans = [(file, start) for file in files for start in range(0, file.bytes, step)]
    asked = [(uri, file.path, start, min(start + step, file.bytes)) for file, start in spans]
    counted = zip(spans, run_tasks(count_line_ends, asked), strict=True)
    cuts: dict[str, list] = {}
    for name, of_file in groupby(counted, key=lambda one: one[0][0].name):
        found = list(of_file)
        if all(counts is not None for _, counts in found):
            size = found[0][0][0].bytes
            cuts[name] = [[p.end - p.begin, *astuple(p)] for p in _between_lines([c for _, c in found], size)]
    return cuts


def _between_lines(counts: Sequence[Any], size: int) -> list[Piece]:
    """The pieces of a file. The first begins at byte 0, each other one at the first line that begins in its span."""
    starts, before = [(0, 0)], 0
    for span, (count, first) in enumerate(counts):
        if span and 0 <= first < size:
            starts.append((first, before + 1))
        before += count
    ends = [*starts, (size, 0)]
    return [Piece(begin, end, lines) for (begin, lines), (end, _) in pairwise(ends)]


def _cut_parquet(uri: str, large: Sequence[CorpusFile], step: int) -> dict[str, list]:
    files = [file for file in large if file.format == "parquet"]
    cuts: dict[str, list] = {}
    for file, groups in zip(files, run_tasks(row_groups, [(uri, file.path) for file in files]), strict=True):
        share = file.bytes / max(1, sum(size for size, _ in groups))  # compressed bytes per uncompressed byte
        pieces: list[list] = []
        row = 0
        for number, (size, rows) in enumerate(groups):
            if not pieces or pieces[-1][0] + share * size > step:
                pieces.append([0, number, number, row])
            pieces[-1][0] += int(share * size)
            pieces[-1][2] = number + 1
            row += rows
        cuts[file.name] = pieces
    return cuts
