"""Specialist sets: a few texts that say what a specialist is for, and others to measure it on.

A user's are files of texts. From a store, every held-out source with enough passages is one (``held_out.py``). Whole
documents go to one side or the other, so nothing a specialist is measured on comes from a document that chose its
domain weights.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappush, heappushpop

from pipeline.corpus.accounts import Losses, Tally
from pipeline.corpus.defaults import MAX_BAD_DOCUMENTS, MAX_DAMAGED_FILES
from pipeline.corpus.documents import Corpus
from pipeline.corpus.listing import files_not_read, open_corpus
from pipeline.corpus.readers import read_documents
from pipeline.passages.cutting import cut_passages
from storage_schema.errors import UserError

LEAST_TEXTS = 20
EVALUATION, LEAST_TO_SPLIT = 50, 10
FEW_DOCUMENTS = 10
LONG = 10
"""Of a document of more passages those that are taken are spread over it; of a shorter one they are the first."""
PASSAGE_CHARACTERS = 2000
_Drawn = tuple[int, list[str]]
"""A document's place in the draw, the greater the earlier, and its passages."""
FOLDER = re.compile(r"(?!\.)[A-Za-z0-9_.-]{1,200}")
"""The name of a set, which names a folder."""


@dataclass(frozen=True, kw_only=True)
class SpecialistSet:
    """One specialist set."""

    name: str
    texts: list[str]
    """Passages that estimate the domain weights."""
    evaluation: list[str]
    """Other passages; empty if none were asked for."""
    documents: list[int] | None = None
    """Of each of `texts` a number of its document; None: each is a document of its own."""
    unseen_source: bool = False
    """No document of this source was trained on."""
    available: int | None = None
    """Passages there are, of which these are a sample; None: not known."""
    unreadable: int = 0
    """Documents that could not be read."""
    not_read: Mapping[str, int] = field(default_factory=dict)
    """Files that were passed over, by kind."""

    @property
    def notes(self) -> list[str]:
        """What a person should know of how the texts were taken."""
        used = len(self.texts) + len(self.evaluation)
        notes = []
        if self.available is not None and used < self.available:
            notes.append(f"{used:,} of {self.available:,} passages were taken, spread over all of the texts.")
        if self.unreadable:
            notes.append(f"{self.unreadable:,} documents of the texts could not be read.")
        if self.not_read:
            notes.append(f"Files of the texts that were not read: {files_not_read(self.not_read)}.")
        return notes


def check_names(sets: Sequence[SpecialistSet]) -> None:
    """Raise ValueError if two of the sets have the same name, as one of `texts` and a held-out source may."""
    names = [one.name for one in sets]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two sets are named {name!r}: give the one of `texts` another name.")


def set_of_texts(
    name: str,
    path: str,
    *,
    max_texts: int,
    evaluation_passages: int | None,
    text_field: str = "text",
    source_field: str = "source",
) -> SpecialistSet:
    """The specialist set in a file or folder of texts: a bounded sample of its passages, some of every file where there
    are no more files than passages wanted.

    All of the files are read. Documents are drawn by the hashes of their texts, so their order changes nothing. Of a
    long document the passages are spread over all of it, and its end is what is evaluated on: neighbouring passages
    are too much alike to stand on both sides.

    Args:
        path: whatever :func:`pipeline.corpus.listing.open_corpus` reads, with the same fields.
        evaluation_passages: so many passages, of other documents where there are several, are for evaluation; None: a
            fifth, ``EVALUATION`` at most, and none of fewer than ``LEAST_TO_SPLIT``.

    Raises:
        ValueError: a name that names no folder, unreadable texts (as :func:`pipeline.passages.build.build_passages`),
            or too few passages.
    """
    if not FOLDER.fullmatch(name):
        raise UserError(f"{name!r} cannot name a specialist; use letters, digits, '_', '-' and '.'.")
    wanted = max_texts + (EVALUATION if evaluation_passages is None else evaluation_passages)
    corpus = open_corpus(path, text_field=text_field, source_field=source_field)
    sample = _Sample(wanted, files=len(corpus.files))
    tally = sample.read(name, corpus)
    documents = sample.documents()
    passages = sum(map(len, documents))
    if not passages:
        bad = f" First: {tally.bad_named[0]}" if tally.bad_named else ""
        raise UserError(f"specialist set {name}: no text in {path}. Give a file or folder with some.{bad}")
    needed = evaluation_passages
    if needed is None:
        needed = min(EVALUATION, passages // 5) if passages >= LEAST_TO_SPLIT else 0
    if passages <= needed:
        raise UserError(
            f"specialist set {name} has {passages} passages; it needs at least one, and {needed} more to evaluate on. "
            "Give more text, or lower evaluation_passages."
        )
    evaluation = taken(documents, needed)
    texts, numbers = numbered(documents, max_texts)
    return SpecialistSet(
        name=name,
        texts=texts,
        evaluation=evaluation,
        documents=numbers,
        available=tally.passages_cut - tally.blank_passages,
        unreadable=tally.bad_documents,
        not_read=corpus.not_read,
    )


class _Sample:
    """The documents of a corpus with the lowest hashes, about `wanted` passages in all: of every file an equal share,
    and what that leaves of all documents.
    """

    def __init__(self, wanted: int, *, files: int):
        self.wanted, self.share = wanted, wanted // max(1, files)
        self.of_files: list[list[_Drawn]] = []
        self.of_all: list[_Drawn] = []

    def read(self, name: str, corpus: Corpus) -> Tally:
        """Read all files. Raises UserError where more is lost than a build allows by default."""
        losses = Losses(
            max_bad_documents=MAX_BAD_DOCUMENTS, max_damaged_files=MAX_DAMAGED_FILES, are_settings=False
        )
        tally = Tally()
        for file in corpus.files:
            self.of_files.append([])
            for document in read_documents(corpus, file):
                if (text := tally.take(document, file.name)) is not None:
                    self._add(text, tally.take_passages(cut_passages(text, PASSAGE_CHARACTERS)))
                elif error := losses.error(tally, corpus.uri):
                    raise UserError(f"specialist set {name}: {error}")
        return tally

    def _add(self, text: str, passages: list[str]) -> None:
        drawn = (-int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]), _spread(passages, self.wanted))
        for kept, size in ((self.of_files[-1], self.share), (self.of_all, self.wanted)):
            if drawn not in kept:  # a text that is there twice
                (heappush if len(kept) < size else heappushpop)(kept, drawn)

    def documents(self) -> list[list[str]]:
        """The passages of the documents that were drawn, no passage twice."""
        known: set[str] = set()
        whole: dict[int, list[str]] = {}
        chosen: dict[int, set[str]] = {}
        for drawn, most in (
            *((of_file, self.share) for of_file in self.of_files),
            (self.of_all, self.wanted),
        ):
            room = min(most, self.wanted - len(known))
            for number, passages in sorted(drawn, reverse=True):
                whole[number] = list(dict.fromkeys(passages))
                new = _spread([text for text in whole[number] if text not in known], room)
                room -= len(new)
                known.update(new)
                chosen.setdefault(number, set()).update(new)
        return [
            [text for text in whole[number] if text in chosen[number]]
            for number in sorted(chosen, reverse=True)
            if chosen[number]
        ]


def _spread(passages: list[str], number: int) -> list[str]:
    """So many of a document's passages, in its order: of a long one evenly spaced, else the first."""
    if len(passages) <= max(number, LONG):
        return passages[:number]
    return [passages[n * len(passages) // number] for n in range(number)]


def taken(documents: list[list[str]], needed: int) -> list[str]:
    """Take `needed` passages out of the documents, the ends of those that come first by their hashes.

    What is left of a document of which some was taken is left out, unless there are so few documents, or it is so much
    of what is left, that it would be missed.
    """
    taken: list[str] = []
    left = sum(map(len, documents))
    for document in sorted(documents, key=lambda document: hashlib.sha256(document[0].encode()).digest()):
        missing = needed - len(taken)
        if not missing:
            break
        left -= len(document)
        taken += document[-missing:]
        missed = len(documents) < FEW_DOCUMENTS or left < LEAST_TEXTS
        document[:] = document[:-missing] if missed else []
    return taken


def numbered(documents: Iterable[list[str]], max_texts: int) -> tuple[list[str], list[int]]:
    """Passages of the first documents, and of each the number of its document."""
    texts: list[str] = []
    numbers: list[int] = []
    for number, document in enumerate(documents):
        taken = _spread(document, max_texts - len(texts))
        texts += taken
        numbers += [number] * len(taken)
    return texts, numbers
