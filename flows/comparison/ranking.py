"""How well the losses of a soup's models of mixtures rank them as those of models that were trained on them do.

Legend: M mixtures, K domains, R sets, S seeds, b resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from flows.comparison.further import FURTHER, Question
from flows.comparison.measuring import FINISHED
from flows.comparison.sets import MeasuredSet
from flows.comparison.surface import LEAST, MIXTURE, SURFACE, is_mixture

SOUP = "soup"
RESAMPLES = 1000
EMBEDDINGS = "embeddings alone"
"""The prediction without a model: the nearer a mixture's mean centroid is to the set's, the less the loss."""


def collect_surface(
    cells: Sequence[Mapping[str, Any]],
    asked: Question,
    sets: Sequence[MeasuredSet],
    centroids_KD: np.ndarray,
) -> dict[str, Any] | None:
    """How well each method ranks the mixtures, a soup first; None where no method or fewer than LEAST mixtures were
    trained to their end.

    Args:
        cells: of all methods and of the mixtures.
        centroids_KD: of the domains.
    """
    trained_SRM = _trained(cells, asked, sets)
    kept_M = np.isfinite(trained_SRM).any(0).all(0)
    if kept_M.sum() < LEAST:
        return None
    trained_SRM = trained_SRM[:, :, kept_M]
    truth_RM = np.nanmean(trained_SRM, axis=0)
    predictions = _predictions(cells, sets)
    if not predictions:
        return None
    predictions = {label: losses_SRM[:, :, kept_M] for label, losses_SRM in predictions.items()}
    by_embeddings_RM = _by_embeddings(asked.weights_MK[torch.from_numpy(kept_M)], sets, centroids_KD)
    ranked = [
        _ranked(label, predicted_SRM, truth_RM)
        for label, predicted_SRM in (predictions | {EMBEDDINGS: by_embeddings_RM[None]}).items()
    ]
    return {
        "mixtures": [int(row) for row in np.flatnonzero(kept_M)],
        "of": len(asked.weights_MK),
        "sets": [one.name for one in sets],
        "trained": _numbers(truth_RM),
        "trained_sd": _numbers(trained_SRM.std(0, ddof=1)) if len(trained_SRM) > 1 else None,
        "predicted": {label: _numbers(losses_SRM.mean(0)) for label, losses_SRM in predictions.items()},
        "ranked": ranked,
        "seeds_agree": _seeds_agree(trained_SRM),
    }


def _numbers(losses_RM: np.ndarray) -> list[list[float | None]]:
    return [[float(loss) if np.isfinite(loss) else None for loss in row] for row in losses_RM]


def _trained(cells: Sequence[Mapping[str, Any]], asked: Question, sets: Sequence[MeasuredSet]) -> np.ndarray:
    """Losses of the models that were trained on the mixtures, [S, R, M]; not a number where there is none."""
    seeds = sorted({cell["seed"] for cell in cells})
    losses_SRM = np.full((len(seeds), len(sets), len(asked.weights_MK)), np.nan)
    for cell in cells:
        if is_mixture(cell["method"]) and cell["status"] == FINISHED:
            losses = cell["points"][-1]["losses"]
            losses_SRM[seeds.index(cell["seed"]), :, int(cell["method"].removeprefix(MIXTURE))] = [
                losses[one.name] for one in sets
            ]
    return losses_SRM


def _predictions(cells: Sequence[Mapping[str, Any]], sets: Sequence[MeasuredSet]) -> dict[str, np.ndarray]:
    """Losses of each method's models of all mixtures, [S, R, M]."""
    asked = [cell for cell in cells if SURFACE in cell.get(FURTHER, {})]
    labels = sorted(dict.fromkeys(cell["method"] for cell in asked), key=lambda label: label != SOUP)
    return {
        label: np.array(
            [[cell[FURTHER][SURFACE][one.name] for one in sets] for cell in asked if cell["method"] == label],
            float,
        )
        for label in labels
    }


def _by_embeddings(
    weights_MK: torch.Tensor, sets: Sequence[MeasuredSet], centroids_KD: np.ndarray
) -> np.ndarray:
    """Minus the cosine of each mixture's mean centroid and each set's, [R, M]."""
    means_MD, means_RD = (
        weights.double().numpy() @ centroids_KD
        for weights in (weights_MK, torch.stack([one.weights_K for one in sets]))
    )
    units_MD, units_RD = (
        means / np.linalg.norm(means, axis=1, keepdims=True) for means in (means_MD, means_RD)
    )
    return -units_RD @ units_MD.T


def _ranked(label: str, predicted_SRM: np.ndarray, truth_RM: np.ndarray) -> dict[str, Any]:
    """The rank correlation, its error, and what one loses who takes the mixture that is ranked first."""
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
    return {
        "method": label,
        "spearman": _number(by_set_SR.mean()),
        "error": _number(np.nanstd(of_resample_b)) if np.isfinite(of_resample_b).any() else None,
        "by_set": [_number(value) for value in by_set_SR.mean(0)],
        "regret": float((taken_SR - truth_RM.min(1)).mean()),
        "mean_regret": float((truth_RM.mean(1) - truth_RM.min(1)).mean()),
    }


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _seeds_agree(trained_SRM: np.ndarray) -> float | None:
    """The mean rank correlation of one seed's trained models with the mean of the others'; None for one seed."""
    if len(trained_SRM) < 2:
        return None
    found = [
        spearman(trained_SRM[seed], np.delete(trained_SRM, seed, 0).mean(0))
        for seed in range(len(trained_SRM))
    ]
    return _number(np.mean(found))


def spearman(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation along the last axis; equal values share their mean rank.

    Not a number where all values of one are equal, or one is no number.
    """
    from scipy.stats import rankdata

    ranks = [rankdata(values, axis=-1, nan_policy="propagate") for values in (first, second)]
    x, y = (one - one.mean(-1, keepdims=True) for one in ranks)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (x * y).sum(-1) / np.sqrt((x * x).sum(-1) * (y * y).sum(-1))


def answer(surface: Mapping[str, Any] | None) -> str:
    """In words: whether a soup, or else the first of the methods with models of mixtures, ranks them."""
    if surface is None:
        return (
            f"Whether a soup ranks mixtures was not measured: fewer than {LEAST} models of mixtures, or no soup, were "
            "trained to their end."
        )
    first, count = surface["ranked"][0], len(surface["mixtures"])
    whose = "A soup" if first["method"] == SOUP else first["method"]
    if first["spearman"] is None or first["error"] is None:
        return f"Whether {whose} ranks mixtures cannot be said: the losses of its models of them are equal."
    verdict = (
        "ranks mixtures here"
        if first["spearman"] > 2 * first["error"]
        else "does not surely rank mixtures here"
    )
    beside = [
        f"by the distance of embeddings alone {said(one)}"
        for one in surface["ranked"]
        if one["method"] == EMBEDDINGS
    ]
    if surface["seeds_agree"] is not None:
        beside.append(f"trained again with another seed {surface['seeds_agree']:.2f}")
    return (
        f"{whose} {verdict}: Spearman {said(first)} between its losses and those of models trained on {count} random "
        f"mixtures ({'; '.join(beside)}). The mixture that it ranks first has {first['regret']:.3f} nats more than the "
        f"best one, a random one {first['mean_regret']:.3f}."
    )


def said(ranked: Mapping[str, Any]) -> str:
    """A rank correlation and its error."""
    if ranked["spearman"] is None:
        return "none"
    return f"{ranked['spearman']:.2f}" + ("" if ranked["error"] is None else f" ± {ranked['error']:.2f}")
