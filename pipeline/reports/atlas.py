"""What a person wants to know of each domain: its words, where it is from, some of its passages.

A finished store is read once, a bounded sample of each domain: ``NUMBERED`` passages for the numbers and the
sources, ``READ`` passages of ``READ_TOKENS`` tokens for the words. The samples are rows at equal steps, so the
same store gives the same atlas.

Legend: K domains, C coarse nodes.
"""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.tasks import Report, ignore_progress
from pipeline.tokenizer import TextTokenizer, load_tokenizer
from storage_schema.domains import DomainStore

NUMBERED = 4096
READ = 48
READ_TOKENS = 256
WORD = re.compile(r"(?<![^\W_])[^\W_]{3,24}(?![^\W_])")
WORDS, SOURCES, SAMPLES = 12, 5, 3
SOURCE_CHARACTERS = 80
SAMPLE_BYTES = 360
ALL_SAMPLES_BYTES = 2_400_000
KEPT_WORDS = 300
"""Candidates kept of each domain until all of them are read."""
BACKGROUND_WORDS = 500_000
"""Words counted over all domains before those met once are forgotten."""


@dataclass(frozen=True, kw_only=True)
class DomainPortrait:
    """One domain. All but the counts is of its sample; an empty domain has nothing there."""

    tokens: int
    passages: int
    sampled: int = 0
    """Passages that the sources and the distance are of: all of them, or ``NUMBERED``."""
    mean_squared_distance: float | None = None
    """Of the sampled passages to the centroid, under L2 between unit vectors: 0 to 4."""
    sources: tuple[tuple[str, float], ...] = ()
    """The commonest, each with its share of the sampled passages."""
    words: tuple[str, ...] = ()
    """What sets it apart, the clearest first (:func:`distinguishing_words`)."""
    samples: tuple[str, ...] = ()
    """Beginnings of the passages nearest to the centroid, of different documents."""


@dataclass(frozen=True, kw_only=True)
class Atlas:
    """The domains of a store."""

    digest: str
    """Of the store's domains."""
    domains: tuple[DomainPortrait, ...]
    """K; domain i lies in coarse node ``i // (K // C)``."""
    coarse_words: tuple[tuple[str, ...], ...]
    """C; what sets each coarse node apart from the others."""


def collect_atlas(store: DomainStore, *, report: Report = ignore_progress) -> Atlas:
    """Read a sample of every domain of a finished store.

    Raises:
        StoreError: a partition, the tree or the tokenizer is missing or cannot be read.
    """
    tokenizer = load_tokenizer(Path(store.folder).parent / "tokenizer")
    background = Background()
    portraits, candidates, read_K = [], [], []
    sample_bytes = min(SAMPLE_BYTES, ALL_SAMPLES_BYTES // (SAMPLES * max(store.num_domains, 1)))
    for domain in range(store.num_domains):
        portrait, texts = _read_domain(store, domain, tokenizer, sample_bytes)
        counts = passages_with_word(texts)
        background.add(counts, len(texts))
        portraits.append(portrait)
        candidates.append(_likeliest(counts, len(texts)))
        read_K.append(len(texts))
        report(domain + 1, store.num_domains)
    branching = store.num_domains // len(store.tree.coarse_CD)
    coarse_words = []
    for first in range(0, store.num_domains, branching):
        inside = slice(first, first + branching)
        counts = sum((Counter(some) for some in candidates[inside]), Counter())
        coarse_words.append(distinguishing_words(counts, sum(read_K[inside]), background))
    words_K = [
        distinguishing_words(counts, read, background)
        for counts, read in zip(candidates, read_K, strict=True)
    ]
    return Atlas(
        digest=store.digest,
        domains=tuple(
            DomainPortrait(**{**portrait, "words": words})
            for portrait, words in zip(portraits, words_K, strict=True)
        ),
        coarse_words=tuple(coarse_words),
    )


class Background:
    """In how many passages of all domains each word occurs, in bounded memory."""

    def __init__(self, limit: int = BACKGROUND_WORDS):
        self.limit, self.passages = limit, 0
        self._counts: Counter[str] = Counter()

    def add(self, counts: Mapping[str, int], passages: int) -> None:
        """Add a domain's counts; above the limit the rarest words are forgotten (lossy counting)."""
        self.passages += passages
        self._counts.update(counts)
        least = 1
        while len(self._counts) > self.limit:
            self._counts = Counter({word: n for word, n in self._counts.items() if n > least})
            least += 1

    def __getitem__(self, word: str) -> int:
        return self._counts[word]


def passages_with_word(texts: Iterable[str]) -> Counter[str]:
    """In how many of the texts each word occurs, so that a text which repeats one counts once.

    A word is 3 to 24 letters or digits of any script, at least one of them no digit, in lower case.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update({word for word in WORD.findall(text.lower()) if not word.isdigit()})
    return counts


def distinguishing_words(
    counts: Mapping[str, int], passages: int, background: Background, *, limit: int = WORDS
) -> tuple[str, ...]:
    """The words that a domain has in more of its passages than all domains together, the clearest first.

    Ranked by Dunning's log-likelihood ratio of two shares. With q = counts[w] / passages, and P the share of
    the passages of all domains that have w, each word with q > P scores

        passages · (q · log(q / P) + (1 - q) · log((1 - q) / (1 - P)))

    So a word must be both frequent here and rare elsewhere; no list of stop words is needed.
    """
    scores = {}
    for word, here in counts.items():
        q = here / passages
        p = max(background[word], here) / background.passages
        if q > p:
            rest = (1 - q) * math.log((1 - q) / (1 - p)) if q < 1 else 0.0
            scores[word] = passages * (q * math.log(q / p) + rest)
    return tuple(sorted(scores, key=lambda word: (-scores[word], word))[:limit])


def shorten(text: str, most_bytes: int) -> str:
    """The beginning of a text: so many bytes of UTF-8 at most, blank lines and margins dropped."""
    lines = [line.rstrip() for line in text.strip().splitlines() if line.strip()]
    text = "\n".join(lines)
    encoded = text.encode(errors="replace")
    if len(encoded) <= most_bytes:
        return text
    return encoded[: most_bytes - len("…".encode())].decode(errors="ignore").rstrip() + "…"


def _read_domain(
    store: DomainStore, domain: int, tokenizer: TextTokenizer, sample_bytes: int
) -> tuple[dict, list[str]]:
    """All of a portrait but its words, and the texts to find those in."""
    counts = {"tokens": int(store.tokens_K[domain]), "passages": int(store.passages_K[domain])}
    if not counts["tokens"]:
        return counts, []
    table = store.passages(domain)
    rows = _spread(len(table), NUMBERED)
    squares = np.square(table["distance"].take(rows).to_numpy(), dtype=np.float64)
    sources = pc.value_counts(table["source"].take(rows)).to_pylist()
    sources = sorted(sources, key=lambda entry: (-entry["counts"], entry["values"]))[:SOURCES]
    read = table.take(_spread(len(table), READ))
    texts = _texts(read, tokenizer)
    nearest = np.argsort(read["distance"].to_numpy(), kind="stable")
    documents = read["document_id"].to_pylist()
    of_document: dict[str, str] = {}
    for row in nearest.tolist():
        if texts[row].strip():
            of_document.setdefault(documents[row], texts[row])
    return {
        **counts,
        "sampled": len(rows),
        "mean_squared_distance": float(squares.mean()),
        "sources": tuple(
            (entry["values"][:SOURCE_CHARACTERS], entry["counts"] / len(rows)) for entry in sources
        ),
        "samples": tuple(shorten(text, sample_bytes) for text in islice(of_document.values(), SAMPLES)),
    }, texts


def _texts(passages: pa.Table, tokenizer: TextTokenizer) -> list[str]:
    """The beginnings of these passages; one that is cut loses its last word, which may be half of one."""
    column = passages["tokens"].combine_chunks()
    values, offsets = column.values.to_numpy(zero_copy_only=True), np.asarray(column.offsets)
    starts, ends = offsets[:-1], offsets[1:]
    texts = []
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        text = tokenizer.decode(values[start : min(end, start + READ_TOKENS)])
        texts.append(text if end - start <= READ_TOKENS else re.sub(r"[^\W_]*\W*$", "", text))
    return texts


def _likeliest(counts: Counter[str], texts: int) -> dict[str, int]:
    """The candidates worth keeping: the commonest, none that only one of several texts has."""
    least = 2 if texts >= 4 else 1
    return {sys.intern(word): n for word, n in counts.most_common(KEPT_WORDS) if n >= least}


def _spread(rows: int, most: int) -> np.ndarray:
    """int64: at most `most` of so many rows, at equal steps."""
    return np.arange(rows) if rows <= most else np.linspace(0, rows - 1, most).astype(np.int64)
