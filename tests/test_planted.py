from __future__ import annotations

import json
import math

import numpy as np
import pytest

from tests.planted import (
    Language,
    entropy,
    mixture_nats_per_word,
    planted_languages,
    write_planted_corpus,
)


def test_entropy_of_a_worked_chain():
    # From a: a or b alike; from b: always a. Stationary (2/3, 1/3), so the rate is 2/3 ln 2.
    language = Language(name="l", words=("a", "b"), transition_VV=np.array([[0.5, 0.5], [1.0, 0.0]]))
    np.testing.assert_allclose(language.stationary_V, [2 / 3, 1 / 3])
    assert language.nats_per_word == pytest.approx(2 / 3 * math.log(2))
    assert language.document_nats(3) == pytest.approx(math.log(3) - 2 / 3 * math.log(2) + 4 / 3 * math.log(2))


def test_documents_spend_what_is_stated():
    [language] = planted_languages(1, words=30, successors=4)
    number = {word: i for i, word in enumerate(language.words)}
    generator = np.random.default_rng(0)
    spent = []
    for _ in range(200):
        walk = [number[word] for word in language.document(100, generator).split(" ")]
        steps = language.transition_VV[walk[:-1], walk[1:]]
        spent.append(-np.log(language.stationary_V[walk[0]]) - np.log(steps).sum())
    error = np.std(spent) / math.sqrt(len(spent))
    assert abs(np.mean(spent) - language.document_nats(100)) < 4 * error


def test_languages_are_deterministic_and_share_what_is_asked():
    first, again = planted_languages(4, seed=1), planted_languages(4, seed=1)
    assert [a.words == b.words for a, b in zip(first, again, strict=True)] == [True] * 4
    assert np.array_equal(first[2].transition_VV, again[2].transition_VV)
    assert len(set().union(*(language.words for language in first))) == 4 * 200
    shared = planted_languages(3, words=100, shared=0.25)
    assert len(set(shared[0].words) & set(shared[1].words)) == 25
    assert not np.array_equal(shared[0].transition_VV, shared[1].transition_VV)
    for language in first:
        np.testing.assert_allclose(language.transition_VV.sum(1), 1)
        np.testing.assert_allclose(language.stationary_V @ language.transition_VV, language.stationary_V)
        assert ((language.transition_VV > 0).sum(1) == 6).all()


def test_mixture_bounds():
    languages = planted_languages(4)
    lower, upper = mixture_nats_per_word(languages, np.full(4, 0.25), words_per_document=50)
    assert upper - lower == pytest.approx(math.log(4) / 50)
    one = mixture_nats_per_word(languages, [0, 1, 0, 0], words_per_document=50)
    assert one[0] == one[1] == pytest.approx(languages[1].document_nats(50) / 50)
    assert entropy(np.array([0.5, 0.5, 0])) == pytest.approx(math.log(2))


def test_corpus_is_json_lines_with_the_language_as_source(tmp_path):
    languages = planted_languages(3)
    write_planted_corpus(tmp_path / "a.jsonl", languages, documents_per_language=5, words_per_document=40)
    write_planted_corpus(tmp_path / "b.jsonl", languages, documents_per_language=5, words_per_document=40)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    records = [json.loads(line) for line in open(tmp_path / "a.jsonl")]
    assert sorted(record["source"] for record in records) == sorted(5 * [lang.name for lang in languages])
    words = {language.name: set(language.words) for language in languages}
    assert all(set(record["text"].split(" ")) <= words[record["source"]] for record in records)


@pytest.mark.parametrize("bad", [{"number": 0}, {"words": 1}, {"successors": 1}, {"shared": 1.5}])
def test_bounds(bad):
    with pytest.raises(ValueError, match="must be at least 1"):
        planted_languages(**{"number": 2, **bad})
