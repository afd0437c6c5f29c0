"""How well predicted losses of mixtures rank them as the losses of models that were trained on them do.

Legend: S seeds, R sets of texts, M mixtures, K domains, D embedding size, b resamples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

LEAST = 4
"""Mixtures; of fewer the ranks say nothing."""
RESAMPLES = 1000


def compare_ranks(trained_SRM: np.ndarray, predictions: Mapping[str, np.ndarray]) -> dict[str, Any] | None:
    """The rank correlations, in numbers that JSON can hold; None where there are fewer than LEAST mixtures.

    A mixture counts if a model was trained on it with some seed. The truth is the mean over seeds.

    Args:
        trained_SRM: losses of the trained models, in nats per token; NaN where there is none.
        predictions: name → predicted losses [S, R, M] of as many seeds as there are; only their order counts.

    Returns:
        ``mixtures``, the numbers of those that count; ``trained`` and ``predicted``, the means over seeds [R, M];
        ``trained_sd``, over seeds (None for one); ``ranked``, for each prediction what :func:`rank` says;
        ``seeds_agree``, the mean correlation of the models of one seed with the mean of the others' (None for one).
    """
    kept_M = np.isfinite(trained_SRM).any(0).all(0)
    if kept_M.sum() < LEAST:
        return None
    trained_SRM = trained_SRM[:, :, kept_M]
    truth_RM = np.nanmean(trained_SRM, axis=0)
    several = len(trained_SRM) > 1
    return {
        "mixtures": np.flatnonzero(kept_M).tolist(),
        "trained": _rows(truth_RM),
        "trained_sd": _rows(trained_SRM.std(0, ddof=1)) if several else None,
        "predicted": {name: _rows(of_SRM[:, :, kept_M].mean(0)) for name, of_SRM in predictions.items()},
        "ranked": {name: rank(of_SRM[:, :, kept_M], truth_RM) for name, of_SRM in predictions.items()},
        "seeds_agree": _seeds_agree(trained_SRM) if several else None,
    }


def rank(predicted_SRM: np.ndarray, truth_RM: np.ndarray) -> dict[str, Any]:
    """``spearman``, the mean over seeds and sets; ``error``, its bootstrap standard error over mixtures; ``by_set``.

    ``regret`` is what the mixture that is predicted to be the best has above the one that is, in nats per token;
    ``mean_regret`` is that of a mixture at random. None stands for a number that there is not, as of equal losses.
    """
    mixtures = truth_RM.shape[1]
    drawn_bM = np.random.Generator(np.random.PCG64(0)).integers(mixtures, size=(RESAMPLES, mixtures))
    of_resample_b = np.mean(
        [
            spearman(of_set_M[drawn_bM], truth_M[drawn_bM])
            for of_seed_RM in predicted_SRM
            for of_set_M, truth_M in zip(of_seed_RM, truth_RM, strict=True)
        ],
        axis=0,
    )
    by_set_SR = spearman(predicted_SRM, truth_RM[None])
    first_SR = np.nan_to_num(predicted_SRM, nan=np.inf).argmin(-1)
    taken_SR = np.take_along_axis(truth_RM[None], first_SR[..., None], -1)[..., 0]
    # Where a resample draws one mixture only there are no ranks.
    known_b = of_resample_b[np.isfinite(of_resample_b)]
    return {
        "spearman": _number(by_set_SR.mean()),
        "error": _number(known_b.std()) if len(known_b) else None,
        "by_set": [_number(value) for value in by_set_SR.mean(0)],
        "regret": float((taken_SR - truth_RM.min(1)).mean()),
        "mean_regret": float((truth_RM.mean(1) - truth_RM.min(1)).mean()),
    }


def spearman(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation along the last axis; equal values share their mean rank.

    NaN where all values of one are equal, or one is NaN.
    """
    from scipy.stats import rankdata

    ranks = [rankdata(values, axis=-1, nan_policy="propagate") for values in (first, second)]
    x, y = (one - one.mean(-1, keepdims=True) for one in ranks)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (x * y).sum(-1) / np.sqrt((x * x).sum(-1) * (y * y).sum(-1))


def by_embeddings(weights_MK: np.ndarray, sets_RK: np.ndarray, centroids_KD: np.ndarray) -> np.ndarray:
    """A prediction without a model: minus the cosine of a mixture's mean centroid and a set's, [R, M].

    Args:
        sets_RK: domain weights of the sets.
    """
    means_MD, means_RD = weights_MK @ centroids_KD, sets_RK @ centroids_KD
    units_MD, units_RD = (
        means / np.linalg.norm(means, axis=1, keepdims=True) for means in (means_MD, means_RD)
    )
    return -units_RD @ units_MD.T


def _seeds_agree(trained_SRM: np.ndarray) -> float | None:
    return _number(
        np.mean(
            [
                spearman(of_seed_RM, np.delete(trained_SRM, seed, 0).mean(0))
                for seed, of_seed_RM in enumerate(trained_SRM)
            ]
        )
    )


def _number(value: np.floating[Any]) -> float | None:
    return float(value) if np.isfinite(value) else None


def _rows(losses_RM: np.ndarray) -> list[list[float | None]]:
    return [[_number(loss) for loss in row_M] for row_M in losses_RM]
