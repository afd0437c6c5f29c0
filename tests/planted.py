"""A corpus with a known answer: artificial languages hidden in one file.

A language is a Markov chain of order one over its own made-up words. Its documents are walks from the
stationary distribution, words joined by single spaces, so a document and its walk say the same and the
least nats any model can spend on a document are known. The language's name is the document's ``source``,
so the domains found in the corpus can be held against it.

Legend: V words of a language.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from storage_schema.errors import UserError

CONSONANTS, VOWELS = "bdfghjklmnprstvwxz", "aeiou"
SYLLABLES = [consonant + vowel for consonant in CONSONANTS for vowel in VOWELS]
LANGUAGE_SYLLABLES = 24
"""Each language favours so many of the 90 syllables, as real ones do; this is what an embedder can see."""


@dataclass(frozen=True, kw_only=True)
class Language:
    """One planted language."""

    name: str
    words: tuple[str, ...]
    transition_VV: np.ndarray
    """float64; row i is the distribution of the word after word i. Irreducible."""

    @cached_property
    def stationary_V(self) -> np.ndarray:
        """float64; the distribution of a word of which nothing is known."""
        size = len(self.words)
        equations = np.vstack([self.transition_VV.T - np.eye(size), np.ones(size)])
        solution = np.linalg.lstsq(equations, np.append(np.zeros(size), 1.0), rcond=None)[0]
        return np.clip(solution, 0, None) / np.clip(solution, 0, None).sum()

    @property
    def nats_per_word(self) -> float:
        """The entropy rate: nats of a word of which the word before is known."""
        return float(self.stationary_V @ np.array([entropy(row) for row in self.transition_VV]))

    def document_nats(self, words: int) -> float:
        """Expected nats of a whole document of `words` words in a language that is known."""
        return entropy(self.stationary_V) + (words - 1) * self.nats_per_word

    def document(self, words: int, generator: np.random.Generator) -> str:
        """A walk of `words` words."""
        cumulative = np.cumsum(self.transition_VV, axis=1)
        word = _draw(np.cumsum(self.stationary_V), generator.random())
        walk = [word]
        for uniform in generator.random(words - 1):
            word = _draw(cumulative[word], uniform)
            walk.append(word)
        return " ".join(self.words[word] for word in walk)


def planted_languages(
    number: int, *, words: int = 200, successors: int = 6, shared: float = 0.0, seed: int = 0
) -> list[Language]:
    """Make languages, the same for the same arguments.

    Args:
        words: V, size of each vocabulary.
        successors: words that may follow a word, at least 2, with probabilities drawn uniformly.
        shared: share of each vocabulary that is common to all languages (with other successors in each).

    Raises:
        ValueError: a value outside its bounds.
    """
    if number < 1 or words < 2 or not 2 <= successors <= words or not 0 <= shared <= 1:
        raise UserError(
            f"number is {number}, words {words}, successors {successors}, shared {shared}; they must be at "
            "least 1, at least 2, between 2 and words, and between 0 and 1."
        )
    generator = np.random.Generator(np.random.PCG64(seed))
    taken: set[str] = set()
    common = _new_words(round(shared * words), SYLLABLES, taken, generator)
    languages = []
    for language in range(number):
        favoured = [SYLLABLES[i] for i in generator.choice(len(SYLLABLES), LANGUAGE_SYLLABLES, replace=False)]
        own = _new_words(words - len(common), favoured, taken, generator)
        transition_VV = _random_chain(words, successors, generator)
        languages.append(
            Language(name=f"language-{language:02d}", words=(*common, *own), transition_VV=transition_VV)
        )
    return languages


def write_planted_corpus(
    path: str | Path,
    languages: Sequence[Language],
    *,
    documents_per_language: int = 100,
    words_per_document: int = 300,
    seed: int = 0,
) -> None:
    """Write the corpus as JSON lines with ``text`` and ``source``, the languages shuffled."""
    generator = np.random.Generator(np.random.PCG64(seed))
    order = generator.permutation(len(languages) * documents_per_language) % len(languages)
    with open(path, "w", encoding="utf-8") as file:
        for number in order:
            text = languages[number].document(words_per_document, generator)
            file.write(json.dumps({"text": text, "source": languages[number].name}) + "\n")


def mixture_nats_per_word(
    languages: Sequence[Language], weights: Sequence[float], *, words_per_document: int
) -> tuple[float, float]:
    """Bounds of the least expected nats per word of documents drawn from a mixture of languages.

    Below: every document's language is known before its first word. Above: it is told first, which costs
    the entropy of the weights once per document. (With disjoint vocabularies the first word tells it, and the
    upper bound is exact.) Both hold for any model, so a loss below the first is a leak. They are for whole
    documents, so cut none: passage_characters at least a document's length. Per token: times words, divided
    by tokens (a tokenizer of exact text neither adds nor removes nats).

    Args:
        weights: of the languages, a distribution.
    """
    shares = np.asarray(weights, np.float64)
    known = [language.document_nats(words_per_document) for language in languages]
    lower = float(shares @ known) / words_per_document
    return lower, lower + entropy(shares) / words_per_document


def entropy(distribution: np.ndarray) -> float:
    """Shannon entropy in nats."""
    positive = distribution[distribution > 0]
    return float(-(positive * np.log(positive)).sum())


def _random_chain(size: int, successors: int, generator: np.random.Generator) -> np.ndarray:
    """Each word has `successors` random ones; one of them follows a cycle through all, so none is a trap."""
    cycle = generator.permutation(size)
    transition_VV = np.zeros((size, size))
    for position, word in enumerate(cycle):
        following = cycle[(position + 1) % size]
        others = generator.choice(np.delete(np.arange(size), following), successors - 1, replace=False)
        transition_VV[word, [following, *others]] = generator.dirichlet(np.ones(successors))
    return transition_VV


def _new_words(
    number: int, syllables: list[str], taken: set[str], generator: np.random.Generator
) -> list[str]:
    words: list[str] = []
    while len(words) < number:
        word = "".join(generator.choice(syllables, generator.integers(2, 4)))
        if word not in taken:
            taken.add(word)
            words.append(word)
    return words


def _draw(cumulative: np.ndarray, uniform: float) -> int:
    return min(int(np.searchsorted(cumulative, uniform, side="right")), len(cumulative) - 1)
