"""Predicted losses of mixtures against those of trained models: ranks, their error, and what is not known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from pipeline.mixtures.ranking import by_embeddings, compare_ranks, rank, spearman


def random(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def test_ranks_are_as_scipy_has_them():
    first, second = random().integers(5, size=(2, 3, 12))  # with ties
    expected = [spearmanr(x, y).statistic for x, y in zip(first, second, strict=True)]
    assert spearman(first, second) == pytest.approx(expected)
    assert np.isnan(spearman(np.ones(4), np.arange(4)))
    assert np.isnan(spearman(np.array([1.0, np.nan, 2.0, 3.0]), np.arange(4)))


def test_the_best_and_the_worst_ranking():
    truth_RM = np.array([[3.0, 3.1, 3.2, 3.3, 3.4], [1.0, 1.2, 1.1, 1.3, 1.4]])
    best, worst = rank(truth_RM[None] + 5, truth_RM), rank(-truth_RM[None], truth_RM)
    assert best["spearman"] == pytest.approx(1) and best["by_set"] == pytest.approx([1, 1])
    assert (best["regret"], best["mean_regret"]) == (0, pytest.approx(0.2)) and best["error"] < 1e-6
    assert (worst["spearman"], worst["regret"]) == (pytest.approx(-1), pytest.approx(0.4))


def test_the_error_is_the_spread_that_other_mixtures_would_bring():
    draws, said, errors = random(1), [], []
    for _ in range(60):
        truth_RM = draws.normal(size=(1, 12))
        found = rank(truth_RM[None] + draws.normal(size=(1, 1, 12)), truth_RM)
        said.append(found["spearman"])
        errors.append(found["error"])
    assert 0.7 < np.mean(errors) / np.std(said) < 1.4


def test_mixtures_without_a_trained_model_do_not_count():
    trained_SRM = np.tile(np.arange(6.0), (2, 3, 1))
    trained_SRM[:, 1, 2] = np.nan  # of no seed
    trained_SRM[1, :, 4] = np.nan  # of one seed
    found = compare_ranks(trained_SRM, {"soup": np.tile(np.arange(6.0), (1, 3, 1))})
    assert found["mixtures"] == [0, 1, 3, 4, 5] and found["trained"][0] == [0, 1, 3, 4, 5]
    assert found["trained_sd"][0] == [0, 0, 0, None, 0] and found["predicted"]["soup"][2] == [0, 1, 3, 4, 5]
    assert found["ranked"]["soup"]["spearman"] == pytest.approx(1) and found["seeds_agree"] is None
    assert compare_ranks(trained_SRM[:, :, :4], {}) is None  # three are left


def test_seeds_agree_as_far_as_their_ranks_do():
    trained_SRM = np.array([[[1.0, 2.0, 3.0, 4.0]], [[1.0, 2.0, 4.0, 3.0]]])
    assert compare_ranks(trained_SRM, {})["seeds_agree"] == pytest.approx(0.8)
    one_seed = compare_ranks(trained_SRM[:1], {})
    assert one_seed["seeds_agree"] is None and one_seed["trained_sd"] is None


def test_equal_and_unknown_predictions_have_no_ranks():
    truth_RM = np.arange(5.0)[None]
    assert rank(np.ones((1, 1, 5)), truth_RM)["spearman"] is None
    assert rank(np.ones((1, 1, 5)), truth_RM)["error"] is None
    unknown = rank(np.array([[[np.nan, 2.0, 1.0, 3.0, 4.0]]]), truth_RM)
    assert unknown["spearman"] is None and unknown["regret"] == 2


def test_embeddings_prefer_the_nearer_mixture():
    centroids_KD = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    losses_RM = by_embeddings(np.eye(3), np.array([[1.0, 0.0, 0.0]]), centroids_KD)
    assert losses_RM == pytest.approx(np.array([[-1.0, -0.6, 0.0]]))
