"""Domain weights and coefficients of many sets: by the router, and refined from there.

Legend: W sets, K domains, N experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

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


def from_weights(
    soup: SoupOfExperts, weights_WK: np.ndarray, said: list[dict[str, Any]] | None = None
) -> Chosen:
    """What the router makes of domain weights; `said`: how they were chosen, for the recipes."""
    rows_WK = torch.from_numpy(weights_WK).float()
    said = [{} for _ in weights_WK] if said is None else said
    return Chosen(weights_WK=rows_WK, coefficients_WN=soup.coefficients(rows_WK), said=said)


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
        start: of the weights that :func:`~flows.specialists.blend.blended_weights` chose.
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
