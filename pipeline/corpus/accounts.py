"""What became of every document and passage of a corpus, in numbers that add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.corpus.documents import BadDocument, DamagedFile, Document
from pipeline.corpus.listing import files_not_read
from storage_schema.errors import UserError

PASSAGES = {
    "passages": "trained on",
    "held_out_passages": "held out",
    "train_passages_over_the_limit": "over max_passages",
    "present_dropped": "that the store has already",
    "near_held_out_dropped": "mostly text that the store holds out",
    "held_out_near_training_dropped": "held out, but mostly in training text",
    "over_max_documents_per_source_dropped": "over max_documents_per_source",
}
"""Words for the counts whose names alone are not clear enough."""
NAMED = 10
"""At most this many bad documents, and this many damaged files, are named."""


@dataclass(kw_only=True)
class Tally:
    """Counts of what some files of a corpus held."""

    documents_read: int = 0
    documents: int = 0
    """Documents whose text is cut into passages."""
    characters: int = 0
    passages_cut: int = 0
    blank_passages: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    """Good documents that are left out, by reason."""
    bad: dict[str, int] = field(default_factory=dict)
    """Documents that cannot be read, by reason."""
    bad_named: list[str] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)
    """Files that cannot be read to their end: the name of each, then where it is damaged and how."""
    documents_lost: int = 0
    """Documents known to be lost in damaged files; there may be more."""

    @property
    def bad_documents(self) -> int:
        return sum(self.bad.values())

    def take(self, one: Document | BadDocument, file: str) -> str | None:
        """Count what a reader found in a file. Returns the text if it must be cut into passages, else None."""
        if isinstance(one, DamagedFile):
            self.damaged.setdefault(file, f"{one.where}: {one.problem}")
            self.documents_lost += one.lost
            return None
        self.documents_read += 1
        if isinstance(one, BadDocument):
            _add(self.bad, {one.reason: 1})
            if len(self.bad_named) < NAMED:
                self.bad_named.append(f"{one.where}: {one.problem}")
            return None
        if reason := one.left_out or ("blank" if not one.text.strip() else None):
            _add(self.dropped, {reason: 1})
            return None
        self.documents += 1
        self.characters += len(one.text)
        return one.text

    def take_passages(self, passages: list[str]) -> list[str]:
        """Count a document's passages and return those that are not blank."""
        kept = [passage for passage in passages if passage.strip()]
        self.passages_cut += len(passages)
        self.blank_passages += len(passages) - len(kept)
        return kept

    @staticmethod
    def total(tallies: Iterable[Tally]) -> Tally:
        """Add tallies up. The first :data:`NAMED` bad documents are named, and damaged files in order."""
        total = Tally()
        for tally in tallies:
            for name in ("documents_read", "documents", "characters", "passages_cut", "blank_passages"):
                setattr(total, name, getattr(total, name) + getattr(tally, name))
            total.documents_lost += tally.documents_lost
            _add(total.dropped, tally.dropped)
            _add(total.bad, tally.bad)
            for file, how in tally.damaged.items():
                total.damaged.setdefault(file, how)
            total.bad_named = [*total.bad_named, *tally.bad_named][:NAMED]
        return total


def _add(to: dict[str, int], numbers: Mapping[str, int]) -> None:
    for name, number in numbers.items():
        to[name] = to.get(name, 0) + number


@dataclass(frozen=True, kw_only=True)
class Losses:
    """How much of a corpus may be lost before it is an error. None: no limit."""

    max_bad_documents: int | None
    max_damaged_files: int | None
    are_settings: bool = True
    """The reader's caller can set them; the error says so."""

    def exceeded_by(self, tally: Tally) -> bool:
        return self.error(tally, "") is not None

    def error(self, tally: Tally, uri: str) -> UserError | None:
        """The error to raise if too much of the corpus at `uri` is lost; None if not."""
        most = self.max_damaged_files
        if most is not None and len(tally.damaged) > most:
            bound, otherwise = self._way_out(
                "max_damaged_files", most, "raise max_damaged_files: what was read of them is then kept"
            )
            return UserError(
                f"{len(tally.damaged)} files or more of {uri} are damaged, or have another format than their names "
                f"say; {bound}. {_first(list(tally.damaged.values()))} Mend or remove them, or {otherwise}."
            )
        most = self.max_bad_documents
        if most is not None and tally.bad_documents > most:
            bound, otherwise = self._way_out("max_bad_documents", most, "raise max_bad_documents")
            return UserError(
                f"{tally.bad_documents} documents or more of {uri} cannot be read ({_list(tally.bad)}); "
                f"{bound}. {_first(tally.bad_named)} Mend or remove them, name the field with text_field, "
                f"or {otherwise}."
            )
        return None

    def _way_out(self, setting: str, most: int, raised: str) -> tuple[str, str]:
        """The bound, and what else helps than mending."""
        if self.are_settings:
            return f"{setting} is {most}", raised
        return f"texts may have {most}", "leave them out: name the files that are good"


def account(
    tally: Tally, documents: Mapping[str, int], passages: Mapping[str, int], not_read: Mapping[str, int]
) -> dict[str, Any]:
    """The counts of a passages stage that say what became of its corpus.

    Args:
        documents: the documents that were cut, by what became of them.
        passages: the passages that are not blank, by what became of them, as ``pipeline/passages/selection.py`` counts
            them.
        not_read: files that are not part of the corpus, by kind.

    Returns:
        ``documents_read`` is the sum of ``documents_by_outcome``, ``passages_cut`` that of ``passages_by_outcome``.
    """
    bad = {f"bad: {reason}": number for reason, number in tally.bad.items()}
    cut = {
        PASSAGES.get(name, name.removesuffix("_dropped").replace("_", " ")): n for name, n in passages.items()
    }
    return {
        "documents_read": tally.documents_read,
        "documents_by_outcome": _some({**documents, **tally.dropped, **bad}),
        "passages_cut": tally.passages_cut,
        "passages_by_outcome": _some({**cut, "blank": tally.blank_passages}),
        "bad_documents": tally.bad_documents,
        "bad_documents_named": tally.bad_named,
        "damaged_files": len(tally.damaged),
        "damaged_files_named": list(tally.damaged.values())[:NAMED],
        "documents_known_lost": tally.documents_lost,
        "files_not_read": dict(not_read),
    }


def account_lines(counts: Mapping[str, Any]) -> list[str]:
    """An :func:`account` in words, one sentence per thing to report. Stages of older releases have no account."""
    lines = []
    for what, total in (("documents", "documents_read"), ("passages", "passages_cut")):
        if total in counts:
            lines.append(f"{counts[total]:,} {what}: {_list(counts[f'{what}_by_outcome'])}.")
    if counts.get("bad_documents"):
        lines.append(f"{counts['bad_documents']:,} bad documents. {_first(counts['bad_documents_named'])}")
    if counts.get("damaged_files"):
        lines.append(
            f"{counts['damaged_files']:,} damaged files, of which only the text before the damage was read "
            f"({counts['documents_known_lost']:,} documents are known to be lost). "
            f"{_first(counts['damaged_files_named'])}"
        )
    if counts.get("files_not_read"):
        lines.append(f"Files that were not read: {files_not_read(counts['files_not_read'])}.")
    return lines


def _some(numbers: Mapping[str, int]) -> dict[str, int]:
    return {name: number for name, number in numbers.items() if number}


def _list(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in Counter(numbers).most_common()) or "none"


def _first(named: list[str]) -> str:
    return f"First: {'; '.join(named[:3])}."
