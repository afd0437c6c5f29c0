"""The method `blended`: how far each set's domain weights go from the generic mixture towards its texts' domains.

The texts of a set are dealt into two folds; the domain weights of either fold are measured on the other. A set takes
nine instances: four shares for each fold, and the generic instance, which all sets have in common. They are put
together many in one pass over the bank, as instances that are only measured always are.

Legend: W sets, S shares above 0, K domains, N experts, U units of a set, n windows, L tokens in a window.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from flows.specialists.losses import Check, LossMeter
from pipeline.specialists.domain_weights import Assignment
from pipeline.specialists.folds import FOLDS, Folds, deal, halves, in_turn
from pipeline.specialists.sets import SpecialistSet
from soe_model.specialists.blending import PER_UNIT, SHARES, Choice, blend_weights, choose, unit_differences

SEED = 0
"""Of the folds, and of the windows that are measured."""
MOST_TOKENS = 16_384
"""Of a set that are measured under each share: a window of each unit, then a second one, as far as this goes."""


@dataclass(frozen=True, kw_only=True)
class _Dealt:
    """What of a set is measured, on two sides."""

    texts: Sequence[str]
    assignment: Assignment
    folds: Folds


@dataclass(frozen=True, kw_only=True)
class WindowsOfUnits:
    """A set's windows of one length in one fold."""

    tokens: list[torch.Tensor] = field(default_factory=list)
    units: list[int] = field(default_factory=list)


_Key = tuple[int, int, int]
"""Set, fold, and length of the windows."""
Windows = dict[_Key, WindowsOfUnits]


def blended_weights(
    meter: LossMeter,
    sets: Sequence[SpecialistSet],
    assignments: Sequence[Assignment],
    assign: Callable[[Sequence[str]], Assignment],
    *,
    check: Check = lambda: None,
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """The domain weights float64 [W, K] of each set, and what a recipe says of how they were chosen.

    Args:
        assignments: of the sets' texts.
        assign: of other texts: a single text is measured by its halves. One of a single word is not, and its
            specialist is the generic instance.
    """
    generic_K = meter.soup.generic_weights
    dealt = [_deal(one, assignment, assign) for one, assignment in zip(sets, assignments, strict=True)]
    choices = _choices(meter, dealt, check)
    rows = [
        blend_weights(assignment.domain_weights, generic_K, choice.share)
        for assignment, choice in zip(assignments, choices, strict=True)
    ]
    said = []
    for choice, sides in zip(choices, dealt, strict=True):
        of = {} if sides is None else {"of": sides.folds.of, "seed": SEED}
        said.append({"blend": choice.describe() | of})
    return np.stack(rows), said


def _deal(
    one: SpecialistSet, assignment: Assignment, assign: Callable[[Sequence[str]], Assignment]
) -> _Dealt | None:
    texts, folds = one.texts, deal(one.texts, one.documents, seed=SEED)
    if folds is None and len(texts := halves(one.texts[0])) > 1:
        dealt = deal(texts, seed=SEED)
        assert dealt is not None
        folds, assignment = replace(dealt, of="halves"), assign(texts)
    return None if folds is None else _Dealt(texts=texts, assignment=assignment, folds=folds)


def _choices(meter: LossMeter, dealt: Sequence[_Dealt | None], check: Check) -> list[Choice]:
    coefficients = [meter.generic_N]
    windows: Windows = {}
    measured: dict[_Key, list[int]] = {}
    for w, sides in enumerate(dealt):
        if sides is None:
            continue
        ours = windows_of_units(meter, sides.texts, sides.folds, w)
        windows |= ours
        for fold in range(FOLDS):
            rows_SN = _candidates(meter, sides.assignment.weights_of(sides.folds.fold_N != fold))
            rows = [0, *range(len(coefficients), len(coefficients) + len(rows_SN))]
            coefficients += list(rows_SN)
            measured |= {key: rows for key in ours if key[1] == fold}
    stacked = {key: torch.stack(some.tokens) for key, some in windows.items()}
    losses = (
        meter.losses_of_some(torch.stack(coefficients), stacked, measured, check=check) if stacked else {}
    )
    choices = []
    for w, sides in enumerate(dealt):
        of_set = [(windows[key].units, losses[key].numpy(), key[2]) for key in windows if key[0] == w]
        if sides is None:
            choices.append(Choice(share=0.0))
            continue
        differences_SU, tokens_U = unit_differences(of_set)
        units = 1 if sides.folds.of == "halves" else len(tokens_U)
        if len(tokens_U) < FOLDS:
            choices.append(Choice(share=0.0))
        else:
            choices.append(choose(differences_SU, tokens_U, most=PER_UNIT * units))
    return choices


def _candidates(meter: LossMeter, weights_K: np.ndarray) -> torch.Tensor:
    """Coefficients [S, N] on the way from the generic mixture to the weights."""
    generic_K = meter.soup.generic_weights
    rows = [blend_weights(weights_K, generic_K, share) for share in SHARES[1:]]
    return meter.soup.coefficients(torch.from_numpy(np.stack(rows)).float())


def windows_of_units(meter: LossMeter, texts: Sequence[str], folds: Folds, w: int) -> Windows:
    """Windows of the units of set w, in turn, any of each: all that are measured."""
    of_units = [
        meter.windows([texts[text] for text in folds.members(unit)]) for unit in range(len(folds.fold_U))
    ]
    found: dict[_Key, WindowsOfUnits] = defaultdict(WindowsOfUnits)
    tokens = 0
    turns = in_turn([len(windows_nL1) for windows_nL1 in of_units], seed=SEED)
    for number, (unit, row) in enumerate(turns):
        window_L1 = of_units[unit][row]
        length = len(window_L1) - 1
        if tokens + length > MOST_TOKENS and number >= FOLDS:
            break
        tokens += length
        some = found[w, int(folds.fold_U[unit]), length]
        some.tokens.append(window_L1)
        some.units.append(unit)
    return dict(found)
