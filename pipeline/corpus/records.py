"""What a reader found in a file → a document, or a report of what is wrong: one rule for every format."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pipeline.corpus.decoding import BadText, decode, source_name
from pipeline.corpus.documents import BadDocument, Corpus, CorpusFile, DamagedFile, Document

Found = Iterator[Document | BadDocument]


class OtherShape(Exception):
    """A whole file does not have the format or the fields that were expected; the message says which."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Stands for a value that cannot be read."""

    problem: str


def document_of(
    text: object, source: object, where: str, file: CorpusFile, corpus: Corpus, fields: Iterable[str]
) -> Document | BadDocument:
    """The document of one record, or what is wrong with it; `fields` are named where the text is not there."""
    field = corpus.text_field
    try:
        text = _plain(text)
        if not isinstance(text, str):
            found = "no text" if text is None else f"a {type(text).__name__}"
            names = ", ".join(map(str, fields))
            return BadDocument(where, f"field {field!r} holds {found}; fields: {names}", "no text")
        field = corpus.source_field
        return Document(document_id=where, source=source_name(_plain(source), default=file.source), text=text)
    except BadText as error:
        return BadDocument(where, f"field {field!r}: {error}", error.reason)


def _plain(value: object) -> object:
    if isinstance(value, Unreadable):
        raise BadText("unreadable", value.problem)
    return decode(value) if isinstance(value, bytes) else value


def damaged(
    file: CorpusFile, problem: str | Exception, at: int | None = None, *, lost: int = 0
) -> DamagedFile:
    """The report of a file that cannot be read from line or row `at` on, or not at all if that is None."""
    words = in_words(problem)
    early = re.search("[Tt]runcated|Expected to be able to read|[Uu]nexpected end", words)
    return DamagedFile(
        where=file.name if at is None else f"{file.name}:{at}",
        problem=f"ends early: {words}" if early else words,
        reason="another shape" if isinstance(problem, OtherShape) else "ends early" if early else "damaged",
        lost=lost,
    )


def in_words(error: str | Exception) -> str:
    """An error's message on one line; the name of its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__
