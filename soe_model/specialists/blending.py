"""How far a specialist goes from the generic mixture towards the domains of its texts.

Its domain weights are h(share) = share * h_texts + (1 - share) * h_generic, and the share is the one that surely lowers
the loss on texts that did not choose h_texts. Where none surely does, it is 0: the specialist is the generic instance.

Legend: S shares, U units (texts, or documents of several), K domains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from storage_schema.errors import UserError

BLENDED = "blended"
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
PER_UNIT = 0.25
"""Share that each unit vouches for: what one text, or two, say of the domains of others is little, however sure they
are of themselves. Four and more may go all the way."""
CAUTION = 1.5
"""Standard errors that a difference must lie below zero. Chosen with PER_UNIT on 16 sets of real text; of 13 others,
with 1 to 100 texts of each, none came out worse than the generic instance by more than 0.002."""
DIGITS = 4
"""Of nats per token in a recipe: the last bits of a loss differ between machines."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The share that was chosen, and why. Empty differences: nothing could be measured."""

    share: float
    differences: tuple[float, ...] = ()
    """Of the shares above 0: mean loss minus the generic instance's, nats per token."""
    errors: tuple[float, ...] = ()
    """Their standard errors over the units."""
    units: int = 0
    """That were measured."""

    def describe(self) -> dict[str, Any]:
        """For a recipe: ``share``, ``units`` and, by share, ``differences`` and ``errors``."""
        names = [f"{share:g}" for share in SHARES[1:]]
        columns = {"differences": self.differences, "errors": self.errors}
        return {"share": self.share, "units": self.units} | {
            key: dict(zip(names, (round(value, DIGITS) for value in column), strict=False))
            for key, column in columns.items()
        }


def blend_weights(weights_K: np.ndarray, generic_K: np.ndarray, share: float) -> np.ndarray:
    """h(share): float64 [K]; at 0 and 1 exactly the ends."""
    if share in (0.0, 1.0):
        return np.asarray(weights_K if share else generic_K, np.float64)
    return share * np.asarray(weights_K, np.float64) + (1 - share) * np.asarray(generic_K, np.float64)


def unit_differences(
    measured: Sequence[tuple[Sequence[int], np.ndarray, int]],
) -> tuple[np.ndarray, np.ndarray]:
    """What :func:`choose` takes, of the units that were measured: differences float64 [S, U] and tokens int64 [U].

    Args:
        measured: for windows of one length the unit of each, their losses [1 + S, n] with the generic instance's first
            (or any other's that the rest is compared with), and the length in tokens.
    """
    units = sorted({unit for some, _, _ in measured for unit in some})
    rows = max((len(losses) for _, losses, _ in measured), default=1)
    sums_SU, tokens_U = np.zeros((rows - 1, len(units))), np.zeros(len(units), np.int64)
    for some, losses_Sn, length in measured:
        for unit, losses_S in zip(some, losses_Sn.T, strict=True):
            at = units.index(unit)
            sums_SU[:, at] += length * (losses_S[1:] - losses_S[0])
            tokens_U[at] += length
    return sums_SU / tokens_U, tokens_U


def choose(
    differences_SU: np.ndarray, tokens_U: np.ndarray, *, most: float = 1.0, caution: float = CAUTION
) -> Choice:
    """The share whose difference is lowest at its upper bound, mean + caution standard errors; 0 if none is below 0.

    Args:
        differences_SU: of the shares above 0, loss minus the generic instance's, nats per token, of each unit.
        tokens_U: that each unit was measured on; its weight in the mean.
        most: that may be chosen, such as ``PER_UNIT`` for each unit.

    Few units have large errors, so that the choice shrinks towards the generic instance by how sure it is.

    Raises:
        ValueError: fewer than two units, which have no spread.
    """
    means_S, errors_S = means_and_errors(differences_SU, tokens_U)
    bounds_S = np.where(np.array(SHARES[1:]) <= most, means_S + caution * errors_S, np.inf)
    best = int(bounds_S.argmin())
    share = SHARES[1 + best] if bounds_S[best] < 0 else 0.0
    return Choice(
        share=share,
        differences=tuple(means_S.tolist()),
        errors=tuple(errors_S.tolist()),
        units=len(tokens_U),
    )


def means_and_errors(differences_SU: np.ndarray, tokens_U: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over the units, weighed by their tokens, and standard errors: float64 [S] each.

    Raises ValueError for fewer than two units.
    """
    units = len(tokens_U)
    if units < 2:
        raise UserError(f"{units} units have no spread; measure 2 or more.")
    weights_U = np.asarray(tokens_U, np.float64) / np.sum(tokens_U)
    means_S = differences_SU @ weights_U
    # The jackknife's: how far the mean moves without each unit. One long unit beside short ones is not sure of itself.
    moved_SU = (differences_SU - means_S[:, None]) * weights_U / (1 - weights_U)
    return means_S, np.sqrt((units - 1) / units * (moved_SU**2).sum(1))
