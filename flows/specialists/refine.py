"""The method `refined`: coefficients learned from the start that `blended` gives, for as many steps as surely help.

The texts are dealt as `blended` deals them, if they are of enough documents: what is learned from one document helps on
its other passages, whatever it does elsewhere. Coefficients are learned from each fold and measured on the other, then
learned from all of the texts in as many steps as were best. A set takes three descents of at most twenty steps.

Legend: K domains, N experts, U units of a set, S looks, n windows, L tokens in a window.
"""

from __future__ import annotations

from typing import Any

import torch

from flows.specialists.blend import SEED, Windows, windows_of_units
from flows.specialists.losses import Check, LossMeter
from pipeline.specialists.domain_weights import Assignment
from pipeline.specialists.folds import FOLDS, deal
from pipeline.specialists.sets import SpecialistSet
from soe_model.specialists.blending import blend_weights, unit_differences
from soe_model.specialists.coefficient_learning import coefficients_after
from soe_model.specialists.refining import LEARNING, LEAST_UNITS, LOOKS, Refinement, choose_steps


def refined_coefficients(
    meter: LossMeter,
    one: SpecialistSet,
    assignment: Assignment,
    start_N: torch.Tensor,
    share: float,
    *,
    check: Check = lambda: None,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """The coefficients float32 [N] of a set, and what a recipe says of how they were found.

    Args:
        assignment: of the set's texts.
        start_N: those of its blended domain weights.
        share: of the texts' domains in these, which is the same in either fold.
    """
    folds = deal(one.texts, one.documents, seed=SEED)
    if folds is None or folds.of != "documents" or len(folds.fold_U) < LEAST_UNITS:
        return start_N, {"refined": Refinement().describe()}
    windows = windows_of_units(meter, one.texts, folds, 0)
    whole = [_whole(windows, meter.length, fold) for fold in range(FOLDS)]
    if not all(whole):
        return start_N, {"refined": Refinement().describe()}
    coefficients: list[torch.Tensor] = []
    measured: dict[tuple[int, int, int], range] = {}
    for fold, other in enumerate(reversed(range(FOLDS))):
        weights_K = assignment.weights_of(folds.fold_N == other)
        begun_K = blend_weights(weights_K, meter.soup.generic_weights, share)
        begun_N = meter.soup.coefficients(torch.from_numpy(begun_K).float()[None])[0]
        learned_SN = coefficients_after(
            meter.soup, begun_N, torch.stack(whole[other]), LEARNING, LOOKS, check=check
        )
        rows = range(len(coefficients), len(coefficients) + len(LOOKS) + 2)
        coefficients += [begun_N, *learned_SN, meter.generic_N]
        measured |= {key: rows for key in windows if key[1] == fold}
    stacked = {key: torch.stack(some.tokens) for key, some in windows.items()}
    losses = meter.losses_of_some(torch.stack(coefficients), stacked, measured, check=check)
    of_units = [(some.units, losses[key].numpy(), key[2]) for key, some in windows.items()]
    differences_SU, tokens_U = unit_differences(of_units)
    chosen = choose_steps(differences_SU[:-1], differences_SU[-1], tokens_U)
    found_N = start_N
    if chosen.steps:
        everything_nL1 = torch.stack([window_L1 for side in whole for window_L1 in side])
        [found_N] = coefficients_after(
            meter.soup, start_N, everything_nL1, LEARNING, (chosen.steps,), check=check
        )
    return found_N, {"refined": chosen.describe() | {"of": folds.of, "seed": SEED}}


def _whole(windows: Windows, length: int, fold: int) -> list[torch.Tensor]:
    """The windows of a fold that are of the full length, [L + 1] each; others cannot stand in a batch with them."""
    return [row for key, some in windows.items() if key[1:] == (fold, length) for row in some.tokens]
