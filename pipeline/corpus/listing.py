"""Documents from any corpus: the installed environment, JSON lines, Parquet, text, or a folder of them.

A corpus is first listed (:func:`open_corpus`), which is cheap and names every file, and then read file by
file (``readers.py``), so that files can be read in parallel and a broken one is told apart from the rest. It
may lie anywhere (``pipeline/places/locations.py``): the documents are the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import PurePosixPath

import pyarrow as pa
from pyarrow import fs

from pipeline.corpus.decoding import source_name
from pipeline.corpus.saved_datasets import DATA_SUFFIX, METADATA, keep_data
from pipeline.places.locations import explain, files_below, missing, open_filesystem
from pipeline.places.retries import with_retries
from storage_schema.errors import UserError
from storage_schema.manifest import content_digest

ENVIRONMENT = "environment"
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}
LINE_SUFFIXES = {".jsonl", ".ndjson", ".json"}
TEXT_SUFFIXES = {".txt", ".text", ".md", ".rst", ".py", ".pyi", ".tex", ".html", ".xml", ".csv", ".org"}


@dataclass(frozen=True, slots=True)
class Document:
    """A text with its origin."""

    document_id: str
    """Unique in the corpus and stable: the file's path, with ``:line`` (or ``:row``) where it holds many."""
    source: str
    text: str
    left_out: str | None = None
    """In a few words, why its reader keeps nothing of it, if so; it is counted under them."""


@dataclass(frozen=True, slots=True)
class BadDocument:
    """Something that should have been a document."""

    where: str
    """The file, with ``:line`` where that is known."""
    problem: str
    reason: str = "unreadable"
    """The kind of problem in a few words: such documents are counted under it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DamagedFile(BadDocument):
    """A file of which nothing, or from here on nothing more, can be read: it may hold any number of documents."""

    lost: int = 0
    """Documents that are known to be lost; how many there are beside them is not known."""


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
    not_read: dict[str, int] = field(default_factory=dict)
    """Files that lie there too and are no part of it, by kind: an ending, ``empty``, or how their names begin."""

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
    not_read: Counter[str] = Counter()
    if uri == ENVIRONMENT:
        from pipeline.corpus.environment import list_environment

        listed: Sequence[CorpusFile] = list_environment()
    else:
        listed, not_read = _list(uri)
    files = tuple(file for file in listed if file.bytes > 0)
    if empty := len(listed) - len(files):
        not_read["empty"] = empty
    if not files:
        known = " ".join(sorted({*LINE_SUFFIXES, ".parquet", *TEXT_SUFFIXES}))
        there = f" There are other files: {files_not_read(not_read)}." if not_read else ""
        raise UserError(
            f"The corpus {uri!r} is empty: it has no file with anything in it of the kinds {known} "
            f"({', '.join(COMPRESSIONS)} too), nor a dataset saved with save_to_disk.{there} Give the path of a file "
            "or folder that has, or `environment`."
        )
    return Corpus(
        uri=uri, files=files, text_field=text_field, source_field=source_field, not_read=dict(not_read)
    )


def files_not_read(not_read: dict[str, int]) -> str:
    """``3 .tsv, 1 empty``, the most first."""
    return ", ".join(f"{number:,} {kind}" for kind, number in Counter(not_read).most_common())


def read_documents(corpus: Corpus, file: CorpusFile) -> Iterator[Document | BadDocument]:
    """The documents of one file, in order; what cannot be read comes as a :class:`BadDocument`.

    Where the corpus's place fails, the file is opened again, ever later, and read on from where it was.

    Raises ValueError if the place is not reached, or lets us read no longer, after some attempts.
    """
    from pipeline.corpus.readers import read_file

    found: Iterator[Document | BadDocument] | None = None
    done = 0

    def following() -> Document | BadDocument | None:
        nonlocal found
        if found is None:
            found = islice(read_file(open_filesystem(corpus.uri)[0], file, corpus), done, None)
        return next(found, None)

    def begin_again() -> None:
        nonlocal found
        found = None

    while one := with_retries(
        following, uri=file.name, store=corpus.uri, what="The corpus", failed=begin_again
    ):
        yield one
        done += 1


def split_suffix(name: str) -> tuple[str, str | None]:
    """``("notes.jsonl", "gzip")`` for ``notes.jsonl.gz``; the compression is None for a plain file."""
    path = PurePosixPath(name)
    compression = COMPRESSIONS.get(path.suffix.lower())
    return (path.with_suffix("").as_posix() if compression else name), compression


def _list(uri: str) -> tuple[list[CorpusFile], Counter[str]]:
    """The files, and how many of which kinds are not read."""
    filesystem, root = open_filesystem(uri)
    folder = PurePosixPath(root).name
    try:
        info = filesystem.get_file_info(root)
        if info.type == fs.FileType.NotFound:
            raise missing(uri, filesystem, root)
        if info.type == fs.FileType.File:
            return [_single_file(uri, info)], Counter()
        named = files_below(filesystem, root)
        hidden = {name: mark for name in named if (mark := _hidden(name))}
        kept = keep_data(filesystem, {name: info for name, info in named.items() if name not in hidden})
    except (OSError, pa.ArrowInvalid) as error:
        raise explain(uri, error) from error
    found = [_corpus_file(info, name, any_suffix=False, folder=folder) for name, info in sorted(kept.items())]
    files = [file for file in found if file is not None]
    others = named.keys() - {file.name for file in files} - _metadata(named, kept)
    kinds = (
        hidden.get(name) or PurePosixPath(name).suffix.lower() or "without an ending"
        for name in sorted(others)
    )
    return files, Counter(kinds)


def _hidden(name: str) -> str | None:
    """How a file is named that is not for us: it, or a folder of it, begins with a dot or a low line."""
    marks = [part[0] for part in PurePosixPath(name).parts if part[0] in "._"]
    return f"named {marks[0]}*" if marks else None


def _metadata(named: dict[str, fs.FileInfo], kept: dict[str, fs.FileInfo]) -> set[str]:
    """What saved datasets say of themselves, which has been read."""
    return {name for name in named if PurePosixPath(name).name in METADATA and name not in kept}


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
        source=source_name(path.parts[0] if len(path.parts) > 1 else default_source, folder),
        format=kind,
        compression=compression,
        bytes=info.size,
        modified=info.mtime_ns or 0,
    )
