"""An atlas of a store's domains: the words of each domain, its sources and some of its passages.

Of each domain a bounded sample is read: ``NUMBERED`` passages for the numbers and the sources, and the first
``READ_TOKENS`` tokens of ``READ`` passages for the words. The sampled rows lie at equal steps, so the same store gives
the same atlas.

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
"""Candidate words kept per domain until all domains are read."""
BACKGROUND_WORDS = 500_000
"""If more words than this are counted over all domains, the rarest are dropped."""


@dataclass(frozen=True, kw_only=True)
class DomainPortrait:
    """One domain. Everything but the two counts comes from its sample; an empty domain has no sample."""

    tokens: int
    passages: int
    sampled: int = 0
    """How many passages the sources and the distance come from: all of them, or ``NUMBERED``."""
    mean_squared_distance: float | None = None
    """Mean squared L2 distance of the sampled passages to the centroid, 0 to 4 (between unit vectors)."""
    sources: tuple[tuple[str, float], ...] = ()
    """The most common sources, each with its share of the sampled passages."""
    words: tuple[str, ...] = ()
    """The words that set it apart, the clearest first (:func:`distinguishing_words`)."""
    samples: tuple[str, ...] = ()
    """Beginnings of the passages nearest to the centroid, from different documents."""


@dataclass(frozen=True, kw_only=True)
class Atlas:
    """The domains of a store."""

    digest: str
    """The digest of the store's domains."""
    domains: tuple[DomainPortrait, ...]
    """K of them; domain i lies in coarse node ``i // (K // C)``."""
    coarse_words: tuple[tuple[str, ...], ...]
    """C of them: the words that set each coarse node apart from the others."""


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
    """Counts, over all domains, in how many passages each word occurs, in bounded memory."""

    def __init__(self, limit: int = BACKGROUND_WORDS):
        self.limit, self.passages = limit, 0
        self._counts: Counter[str] = Counter()

    def add(self, counts: Mapping[str, int], passages: int) -> None:
        """Add a domain's counts. Above the limit the rarest words are dropped (lossy counting)."""
        self.passages += passages
        self._counts.update(counts)
        least = 1
        while len(self._counts) > self.limit:
            self._counts = Counter({word: n for word, n in self._counts.items() if n > least})
            least += 1

    def __getitem__(self, word: str) -> int:
        return self._counts[word]


def passages_with_word(texts: Iterable[str]) -> Counter[str]:
    """Count in how many of the texts each word occurs; a text that repeats a word counts once.

    A word is 3 to 24 letters or digits of any script in lower case, not all of them digits.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update({word for word in WORD.findall(text.lower()) if not word.isdigit()})
    return counts


def distinguishing_words(
    counts: Mapping[str, int], passages: int, background: Background, *, limit: int = WORDS
) -> tuple[str, ...]:
    """The words that occur in a larger share of a domain's passages than of all domains' passages, the clearest first.

    They are ranked by Dunning's log-likelihood ratio of two shares. With q = counts[w] / passages, and P the share of
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
    """The beginning of a text, at most `most_bytes` bytes of UTF-8, without blank lines and trailing blanks."""
    lines = [line.rstrip() for line in text.strip().splitlines() if line.strip()]
    text = "\n".join(lines)
    encoded = text.encode(errors="replace")
    if len(encoded) <= most_bytes:
        return text
    return encoded[: most_bytes - len("…".encode())].decode(errors="ignore").rstrip() + "…"


def _read_domain(
    store: DomainStore, domain: int, tokenizer: TextTokenizer, sample_bytes: int
) -> tuple[dict, list[str]]:
    """A portrait without its words, and the texts in which the words are to be found."""
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
    """The beginnings of these passages. A text that is cut loses its last word, which may be only half a word."""
    column = passages["tokens"].combine_chunks()
    values, offsets = column.values.to_numpy(zero_copy_only=True), np.asarray(column.offsets)
    starts, ends = offsets[:-1], offsets[1:]
    texts = []
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        text = tokenizer.decode(values[start : min(end, start + READ_TOKENS)])
        texts.append(text if end - start <= READ_TOKENS else re.sub(r"[^\W_]*\W*$", "", text))
    return texts


def _likeliest(counts: Counter[str], texts: int) -> dict[str, int]:
    """The candidate words: the most common ones, without those that occur in only one of several texts."""
    least = 2 if texts >= 4 else 1
    return {sys.intern(word): n for word, n in counts.most_common(KEPT_WORDS) if n >= least}


def _spread(rows: int, most: int) -> np.ndarray:
    """int64: at most `most` of `rows` row numbers, at equal steps."""
    return np.arange(rows) if rows <= most else np.linspace(0, rows - 1, most).astype(np.int64)
