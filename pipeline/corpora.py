"""Documents from any corpus: the installed environment, JSON lines, Parquet, text, or a folder of them.

A corpus is first listed (:func:`open_corpus`), which is cheap and names every file, and then read file by
file (``readers.py``), so that files can be read in parallel and a broken one is skipped without the rest. It
may lie anywhere (``locations.py``): the documents are the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow as pa
from pyarrow import fs

from pipeline.locations import explain, files_below, missing, open_filesystem
from pipeline.saved_datasets import DATA_SUFFIX, keep_data
from storage_schema.errors import UserError
from storage_schema.manifest import content_digest

ENVIRONMENT = "environment"
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
LINE_SUFFIXES = {".jsonl", ".ndjson", ".json"}
TEXT_SUFFIXES = {".txt", ".text", ".md", ".rst", ".py", ".pyi", ".tex", ".html", ".xml", ".csv", ".org"}


@dataclass(frozen=True, slots=True)
class Document:
    """A text with its origin."""

    document_id: str
    """Unique in the corpus and stable: the file's path, with ``:line`` (or ``:row``) where it holds many."""
    source: str
    text: str


@dataclass(frozen=True, slots=True)
class BadDocument:
    """Something that should have been a document."""

    where: str
    """The file, with ``:line`` where that is known."""
    problem: str


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a large file, which is read on its own (``large_files.py``)."""

    begin: int
    end: int
    """In bytes of a file of lines, in row groups of a Parquet file."""
    before: int
    """Lines, or rows, of the file that come before it."""


@dataclass(frozen=True, slots=True)
class CorpusFile:
    """One file of a corpus, or a piece of one."""

    path: str
    """In the corpus's file system."""
    name: str
    """Relative to the corpus: what its documents' ids begin with."""
    source: str
    """The source of its documents where they do not name their own."""
    format: str
    """``text``, ``lines``, ``parquet``, ``arrow``, ``code`` or ``manual`` (the last two: ``environment.py``)."""
    compression: str | None
    bytes: int
    """Of a piece, about its own."""
    modified: int
    """Nanoseconds since the epoch, 0 where that decides nothing."""
    piece: Piece | None = None
    """None: the whole file."""

    @property
    def before(self) -> int:
        """Lines or rows before the first that is read."""
        return self.piece.before if self.piece else 0


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A listed corpus."""

    uri: str
    """``environment``, a path, ``s3://bucket/prefix``, or any URI that pyarrow.fs opens."""
    files: tuple[CorpusFile, ...]
    text_field: str = "text"
    source_field: str = "source"

    @property
    def digest(self) -> str:
        """sha256 of names, sizes and times of modification: it changes when the corpus may have changed."""
        fields = [self.text_field, self.source_field]
        return content_digest([fields, [[f.name, f.source, f.bytes, f.modified] for f in self.files]])

    @property
    def bad_documents_are_errors(self) -> bool:
        """Nobody can mend the environment's files, so its unreadable ones are counted and skipped."""
        return self.uri != ENVIRONMENT

    def store_bytes(self, *, passage_characters: int, max_passages: int | None, embedding_size: int) -> float:
        """About what building a store of it takes on disk: text compressed, and twice, while domains are written,
        embeddings and tokens (two bytes for about four and a half characters). What are duplicates, or compressed
        here, is not known.
        """
        characters = float(sum(file.bytes for file in self.files))
        if max_passages is not None:
            characters = min(characters, max_passages * passage_characters)
        passages = characters / passage_characters
        return 0.3 * characters + 2 * (2 * characters / 4.5 + 2 * embedding_size * passages)

    def groups(self, bytes_per_group: int) -> list[tuple[CorpusFile, ...]]:
        """The files in order, cut into groups of about `bytes_per_group` (a larger file is a group)."""
        groups: list[list[CorpusFile]] = []
        room = 0
        for file in self.files:
            if not groups or file.bytes > room:
                groups.append([])
                room = bytes_per_group
            groups[-1].append(file)
            room -= file.bytes
        return [tuple(group) for group in groups]


def open_corpus(uri: str, *, text_field: str = "text", source_field: str = "source") -> Corpus:
    """List the files of a corpus, in a deterministic order.

    Args:
        uri: ``environment``, or a local path or ``pyarrow.fs`` URI of a file or folder; of a dataset saved
            with ``save_to_disk``, its folder.
        text_field: field of JSON lines, Parquet and saved datasets that holds the text.
        source_field: field that names a document's source, where there is one.

    Raises:
        ValueError: nothing is there, it cannot be reached, refuses the credentials, or holds no file of a
            known kind or a saved dataset that cannot be read.
    """
    if uri == ENVIRONMENT:
        from pipeline.environment import list_environment

        files: Sequence[CorpusFile] = list_environment()
    else:
        files = _list(uri)
    files = [file for file in files if file.bytes > 0]
    if not files:
        known = " ".join(sorted({*LINE_SUFFIXES, ".parquet", *TEXT_SUFFIXES}))
        raise UserError(
            f"The corpus {uri!r} is empty: it has no file with anything in it of the kinds {known} "
            "(.gz and .zst too), nor a dataset saved with save_to_disk. Give the path of a file or folder "
            "that has, or `environment`."
        )
    return Corpus(uri=uri, files=tuple(files), text_field=text_field, source_field=source_field)


def read_documents(corpus: Corpus, file: CorpusFile) -> Iterator[Document | BadDocument]:
    """The documents of one file, in order; what cannot be read comes as a :class:`BadDocument`.

    Raises ValueError if the corpus's place is no longer reached, or lets us read no longer.
    """
    from pipeline.readers import READERS

    try:
        yield from READERS[file.format](open_filesystem(corpus.uri)[0], file, corpus)
    except OSError as error:
        raise explain(corpus.uri, error) from error


def split_suffix(name: str) -> tuple[str, str | None]:
    """``("notes.jsonl", "gzip")`` for ``notes.jsonl.gz``; the compression is None for a plain file."""
    path = PurePosixPath(name)
    compression = COMPRESSIONS.get(path.suffix.lower())
    return (path.with_suffix("").as_posix() if compression else name), compression


def _list(uri: str) -> list[CorpusFile]:
    filesystem, root = open_filesystem(uri)
    folder = PurePosixPath(root).name
    try:
        info = filesystem.get_file_info(root)
        if info.type == fs.FileType.NotFound:
            raise missing(uri, filesystem, root)
        if info.type == fs.FileType.File:
            return [_single_file(uri, info)]
        named = files_below(filesystem, root)
        visible = {name: info for name, info in named.items() if not re.search(r"(^|/)[._]", name)}
        kept = keep_data(filesystem, visible)
    except (OSError, pa.ArrowInvalid) as error:
        raise explain(uri, error) from error
    files = [_corpus_file(info, name, any_suffix=False, folder=folder) for name, info in sorted(kept.items())]
    return [file for file in files if file is not None]


def _single_file(uri: str, info: fs.FileInfo) -> CorpusFile:
    path = PurePosixPath(info.path)
    if path.suffix.lower() == DATA_SUFFIX:
        raise UserError(f"The corpus {uri!r} is one file of a saved dataset. Give the dataset's folder.")
    file = _corpus_file(info, path.name, any_suffix=True, folder=path.stem)
    assert file is not None  # any suffix will do
    return file


def _corpus_file(info: fs.FileInfo, name: str, *, any_suffix: bool, folder: str) -> CorpusFile | None:
    plain, compression = split_suffix(name)
    path = PurePosixPath(plain)
    suffix = path.suffix.lower()
    if suffix in LINE_SUFFIXES:
        kind, default_source = "lines", path.stem
    elif suffix == ".parquet":
        kind, default_source = "parquet", path.stem
    elif suffix == DATA_SUFFIX:
        kind, default_source = "arrow", folder
    elif suffix in TEXT_SUFFIXES or any_suffix:
        kind, default_source = "text", folder
    else:
        return None
    return CorpusFile(
        path=info.path,
        name=name,
        source=path.parts[0] if len(path.parts) > 1 else default_source,
        format=kind,
        compression=compression,
        bytes=info.size,
        modified=info.mtime_ns or 0,
    )
