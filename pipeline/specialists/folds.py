"""Texts dealt into two folds, so that no text is measured with domain weights that it chose itself.

Legend: N texts, U units.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

FOLDS = 2


@dataclass(frozen=True, kw_only=True)
class Folds:
    """Which texts stay together, and on which side."""

    unit_N: np.ndarray
    """int64; the unit of each text, 0 to U - 1, numbered by their hashes: the order of the texts changes nothing."""
    fold_U: np.ndarray
    """int64; 0 or 1."""
    of: Literal["documents", "passages", "halves"]
    """What a unit is. Passages of one document, or the halves of one text, where that is all there is, are alike: they
    say less than so many documents would."""

    @property
    def fold_N(self) -> np.ndarray:
        """int64; the fold of each text."""
        return self.fold_U[self.unit_N]

    def members(self, unit: int) -> list[int]:
        """The texts of a unit."""
        return np.flatnonzero(self.unit_N == unit).tolist()


def deal(texts: Sequence[str], documents: Sequence[int] | None = None, *, seed: int = 0) -> Folds | None:
    """Deal whole documents, in the order of their hashes, each to the fold that has fewer texts so far.

    Args:
        documents: of each text a number of its document; None: each is a document of its own.
        seed: of the hashes.

    Returns:
        None for a single text: there is no other one to choose for it.
    """
    if len(texts) < FOLDS:
        return None
    documents = range(len(texts)) if documents is None else documents
    of: Literal["documents", "passages"] = "documents"
    if len(set(documents)) < FOLDS:
        of, documents = "passages", range(len(texts))
    members: dict[int, list[int]] = {}
    for text, document in enumerate(documents):
        members.setdefault(document, []).append(text)
    units = sorted(members.values(), key=lambda unit: _hash([texts[text] for text in unit], seed))
    unit_N, fold_U = np.empty(len(texts), np.int64), np.empty(len(units), np.int64)
    sizes = [0] * FOLDS
    for number, unit in enumerate(units):
        unit_N[unit] = number
        fold_U[number] = fold = sizes.index(min(sizes))
        sizes[fold] += len(unit)
    return Folds(unit_N=unit_N, fold_U=fold_U, of=of)


def documents_of_windows(
    tokens_N: Sequence[int], documents: Sequence[int] | None, windows: int, length: int
) -> np.ndarray:
    """The document of the first token that each window of packed texts predicts, int64 ``[windows]``; the last ones may
    be of the next document.

    Args:
        tokens_N: of each text, with that which ends it.
        documents: as in :func:`deal`.
        length: L, of a window.
    """
    document_N = np.arange(len(tokens_N)) if documents is None else np.asarray(documents, np.int64)
    return document_N[np.searchsorted(np.cumsum(tokens_N), np.arange(windows) * length + 1, side="right")]


def in_turn(counts: Sequence[int], *, seed: int = 0) -> list[tuple[int, int]]:
    """Pairs (unit, row): first a random row of every unit, then a second one of every unit that has two, and so on.

    Args:
        counts: the rows of each unit.
    """
    random = np.random.default_rng(seed)
    turns = [
        (turn, unit, row)
        for unit, count in enumerate(counts)
        for turn, row in enumerate(random.permutation(count).tolist())
    ]
    return [(unit, row) for _, unit, row in sorted(turns)]


def halves(text: str) -> list[str]:
    """The text before and after the white space that is nearest to its middle; the text itself where it has none."""
    text, middle = text.strip(), len(text.strip()) // 2
    gaps = [gap.span() for gap in re.finditer(r"\s+", text)]
    if not gaps:
        return [text]
    first, last = min(gaps, key=lambda gap: abs(sum(gap) / 2 - middle))
    return [text[:first], text[last:]]


def _hash(texts: Sequence[str], seed: int) -> bytes:
    return hashlib.sha256("\0".join([str(seed), *texts]).encode()).digest()
