"""What a corpus is: its files, and the documents in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePosixPath

from storage_schema.manifest import content_digest

ENVIRONMENT = "environment"
ROW_BYTES = 120
"""Of a passage among its domain's rows, beside its tokens: whose it is, and where it lies."""
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}


@dataclass(frozen=True, slots=True)
class Document:
    """A text with its origin."""

    document_id: str
    """Unique in the corpus and stable: the file's path, plus ``:line`` or ``:row`` if the file holds many."""
    source: str
    text: str
    left_out: str | None = None
    """Why the reader keeps nothing of it, in a few words under which it is counted; None if it is kept."""


@dataclass(frozen=True, slots=True)
class BadDocument:
    """Something that should have been a document."""

    where: str
    """The file, plus ``:line`` if the line is known."""
    problem: str
    reason: str = "unreadable"
    """The kind of problem, in a few words under which such documents are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DamagedFile(BadDocument):
    """A file that cannot be read at all, or not beyond this point. It may hold any number of further documents."""

    lost: int = 0
    """Documents known to be lost; there may be more."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a large file that is read on its own (``large_files.py``)."""

    begin: int
    end: int
    """In bytes for a file of lines, in row groups for a Parquet file."""
    before: int
    """Lines or rows of the file before this piece."""


@dataclass(frozen=True, slots=True)
class CorpusFile:
    """One file of a corpus, or a piece of one."""

    path: str
    """The path in the corpus's file system."""
    name: str
    """The path relative to the corpus; the ids of its documents begin with it."""
    source: str
    """The source of its documents that do not name their own."""
    format: str
    """``text``, ``lines``, ``parquet``, ``arrow``, ``code`` or ``manual`` (the last two: ``environment.py``)."""
    compression: str | None
    bytes: int
    """The size of the file; of a piece, about its own size."""
    modified: int
    """Time of the last change in nanoseconds since the epoch; 0 if it must not count in the corpus's digest."""
    piece: Piece | None = None
    """The piece to read; None for the whole file."""

    @property
    def before(self) -> int:
        """Lines or rows of the file before the first one that is read."""
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
    """Counts of files that lie there but are not part of it, by kind: an ending, ``empty``, or how the name begins."""

    @property
    def digest(self) -> str:
        """sha256 of the files' names, sizes and times of change: it differs when the corpus may have changed."""
        fields = [self.text_field, self.source_field]
        return content_digest([fields, [[f.name, f.source, f.bytes, f.modified] for f in self.files]])

    @property
    def bad_documents_are_errors(self) -> bool:
        """False for the environment: users cannot mend its files, so unreadable ones are counted and skipped."""
        return self.uri != ENVIRONMENT

    def store_bytes(
        self,
        *,
        passage_characters: int,
        max_passages: int | None,
        embedding_size: int,
        sampled_passages: int,
    ) -> float:
        """About how many bytes of disk building a store of this corpus takes at its peak: the compressed text, the
        embeddings, and what is larger, the tree's sample of these, or the domains' rows (two bytes per 4.5 characters,
        and what says whose they are) twice, while they are written. Duplicates, and how far compressed files unpack,
        are not known and not counted.

        Args:
            sampled_passages: the tree is fitted on at most so many; 0: no tree is fitted.
        """
        characters = float(sum(file.bytes for file in self.files))
        if max_passages is not None:
            characters = min(characters, max_passages * passage_characters)
        passages = characters / passage_characters
        embeddings, rows = 2 * embedding_size * passages, 2 * characters / 4.5 + ROW_BYTES * passages
        sample = 2 * embedding_size * min(passages, sampled_passages)
        return 0.3 * characters + embeddings + max(sample, 2 * rows)

    def groups(self, bytes_per_group: int) -> list[tuple[CorpusFile, ...]]:
        """The files in order, in groups of about `bytes_per_group`; a larger file is a group of its own."""
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
    """``("notes.jsonl", "gzip")`` for ``notes.jsonl.gz``; the compression is None if the file has none."""
    path = PurePosixPath(name)
    compression = COMPRESSIONS.get(path.suffix.lower())
    return (path.with_suffix("").as_posix() if compression else name), compression
