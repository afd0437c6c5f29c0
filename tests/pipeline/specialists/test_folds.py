"""Texts are dealt into two folds by whole documents, whatever their order."""

import numpy as np
import pytest

from pipeline.specialists.domain_weights import Assignment
from pipeline.specialists.folds import deal, documents_of_windows, halves, in_turn

TEXTS = [f"text {number}" for number in range(12)]


def sides(texts, folds):
    return {frozenset(np.array(texts)[folds.fold_N == fold].tolist()) for fold in (0, 1)}


def test_the_order_of_the_texts_changes_nothing_and_the_seed_does():
    order = np.random.default_rng(0).permutation(12)
    mixed = [TEXTS[text] for text in order]
    folds, other = deal(TEXTS), deal(mixed)
    assert sides(TEXTS, folds) == sides(mixed, other) != sides(TEXTS, deal(TEXTS, seed=1))
    assert np.array_equal(folds.unit_N[order], other.unit_N)


def test_documents_stay_together_and_the_folds_are_even():
    documents = [0, 0, 0, 1, 2, 2, 3, 3, 3, 4, 5, 5]
    folds = deal(TEXTS, documents)
    assert folds.of == "documents" and len(folds.fold_U) == 6
    for document in range(6):
        assert len({fold for fold, d in zip(folds.fold_N, documents, strict=True) if d == document}) == 1
    assert abs(int(folds.fold_N.sum()) - 6) <= 2


def test_of_one_document_the_passages_are_dealt():
    folds = deal(TEXTS, [7] * 12)
    assert folds.of == "passages" and np.bincount(folds.fold_N).tolist() == [6, 6]


def test_two_texts_are_a_fold_each_and_one_has_none():
    assert sorted(deal(["a", "b"]).fold_N) == [0, 1]
    assert deal(["a"]) is None


def test_every_unit_has_its_turn_before_another_has_a_second():
    pairs = in_turn([3, 1, 2])
    assert [unit for unit, _ in pairs] == [0, 1, 2, 0, 2, 0]
    assert sorted(pairs) == [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1)]
    assert pairs == in_turn([3, 1, 2]) != in_turn([3, 1, 2], seed=3)


@pytest.mark.parametrize(
    ("text", "sides"),
    [
        ("one two", ["one", "two"]),
        ("  a\n\nb c  ", ["a", "b c"]),
        ("aaaaaaaa b c", ["aaaaaaaa", "b c"]),
        ("word", ["word"]),
    ],
)
def test_a_text_is_halved_between_words(text, sides):
    assert halves(text) == sides


@pytest.mark.parametrize("text", range(12))
def test_a_text_does_not_choose_the_weights_that_it_is_measured_with(text):
    """Wherever it falls, the histogram of the other fold is the same."""
    folds = deal(TEXTS)
    histograms = []
    for domain in range(4):
        domains_N = np.arange(12) % 4
        domains_N[text] = domain
        assignment = Assignment(
            domains_N=domains_N, distances_N=np.zeros(12), num_domains=4, training_distance=0.0
        )
        histograms.append(assignment.weights_of(folds.fold_N != folds.fold_N[text]))
    assert all(np.array_equal(histograms[0], other) for other in histograms)


def test_a_window_is_of_the_document_that_it_predicts_first():
    assert documents_of_windows([5, 3, 8, 4], [4, 4, 9, 2], windows=4, length=4).tolist() == [4, 4, 9, 9]
    # The third begins with the last token of the second text, and predicts the third.
    assert documents_of_windows([5, 3, 8, 4], None, windows=3, length=7).tolist() == [0, 2, 2]
    assert documents_of_windows([5, 3, 8, 4], None, windows=3, length=5).tolist() == [0, 1, 2]
