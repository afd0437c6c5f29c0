"""Domain weights and coefficients of many sets: of the nearest centroids, blended, and refined from the blended ones.

Legend: W sets, K domains, N experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from flows.specialists.blend import blended_weights
from flows.specialists.losses import Check, LossMeter
from flows.specialists.refine import refined_coefficients
from pipeline.specialists.domain_weights import Assignment
from pipeline.specialists.sets import SpecialistSet
from pipeline.tasks import Report, ignore_progress
from soe_model.files.soup import SoupOfExperts


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What specialists of the sets are put together of."""

    weights_WK: torch.Tensor
    """Domain weights, float32."""
    coefficients_WN: torch.Tensor
    said: list[dict[str, Any]]
    """How they were chosen, of each set, for its recipe."""


def nearest(soup: SoupOfExperts, assignments: Sequence[Assignment]) -> Chosen:
    """The domain weights of the paper's Algorithm 3."""
    rows_WK = np.stack([assignment.domain_weights for assignment in assignments])
    return _chosen(soup, rows_WK, [{} for _ in rows_WK])


def blended(
    meter: LossMeter,
    sets: Sequence[SpecialistSet],
    assignments: Sequence[Assignment],
    assign: Callable[[Sequence[str]], Assignment],
    *,
    check: Check = lambda: None,
) -> Chosen:
    """The domain weights that :func:`~flows.specialists.blend.blended_weights` chooses."""
    return _chosen(meter.soup, *blended_weights(meter, sets, assignments, assign, check=check))


def refined(
    meter: LossMeter,
    sets: Sequence[SpecialistSet],
    assignments: Sequence[Assignment],
    start: Chosen,
    *,
    check: Check = lambda: None,
    report: Report = ignore_progress,
) -> Chosen:
    """The coefficients that :func:`~flows.specialists.refine.refined_coefficients` learns.

    Args:
        start: what :func:`blended` gave.
        report: progress in sets.
    """
    rows, said = [], []
    for number, one in enumerate(sets):
        report(number, len(sets))
        share = start.said[number]["blend"]["share"]
        begun_N = start.coefficients_WN[number]
        found_N, how = refined_coefficients(meter, one, assignments[number], begun_N, share, check=check)
        rows.append(found_N)
        said.append(start.said[number] | how)
    return Chosen(weights_WK=start.weights_WK, coefficients_WN=torch.stack(rows), said=said)


def _chosen(soup: SoupOfExperts, rows_WK: np.ndarray, said: list[dict[str, Any]]) -> Chosen:
    weights_WK = torch.from_numpy(rows_WK).float()
    return Chosen(weights_WK=weights_WK, coefficients_WN=soup.coefficients(weights_WK), said=said)
