"""What a corpus is: its files, and the documents in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePosixPath

from storage_schema.manifest import content_digest

ENVIRONMENT = "environment"
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}


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


def split_suffix(name: str) -> tuple[str, str | None]:
    """``("notes.jsonl", "gzip")`` for ``notes.jsonl.gz``; the compression is None for a plain file."""
    path = PurePosixPath(name)
    compression = COMPRESSIONS.get(path.suffix.lower())
    return (path.with_suffix("").as_posix() if compression else name), compression
