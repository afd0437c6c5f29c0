"""How many steps of gradient descent a specialist's coefficients go on from where its domain weights put them.

The coefficients can reach instances that no domain weights give, which is worth most on text unlike the corpus. So many
steps are taken as surely lower the loss on texts that they were not learned from; where none do, none are taken.

Legend: S looks, U units (texts, or documents of several).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from soe_model.specialists.blending import DIGITS, means_and_errors
from soe_model.specialists.coefficient_learning import Learning

REFINED = "refined"
LOOKS = (5, 10, 20)
"""Steps after which it is measured."""
LEARNING = Learning(steps=LOOKS[-1], learning_rate=0.1, relative=True, batch_size=16)
CAUTION = 2.5
"""Standard errors that a difference must lie below zero: of 29 sets of 30 texts under three banks, none came out worse
than its start (with 1.5, one did by 0.004; tests/benchmarks/records/2026-11-28-weights.md)."""
LEAST_UNITS = 4
"""As many as a share of one needs (see :data:`soe_model.specialists.blending.PER_UNIT`)."""


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """The number of steps that was chosen, and why. Empty differences: nothing could be measured."""

    steps: int = 0
    differences: tuple[float, ...] = ()
    """At each look: mean loss minus that of the start, nats per token."""
    errors: tuple[float, ...] = ()
    """Their standard errors over the units."""
    units: int = 0
    """That were measured."""
    gain: float = 0.0
    """Mean loss of the generic instance minus that after the steps, nats per token."""
    gain_error: float = 0.0
    """Its standard error."""

    def describe(self) -> dict[str, Any]:
        """For a recipe: the fields, ``differences`` and ``errors`` by steps, and what the steps were."""
        columns = {"differences": self.differences, "errors": self.errors}
        by_look = {
            key: {str(look): round(value, DIGITS) for look, value in zip(LOOKS, column, strict=False)}
            for key, column in columns.items()
        }
        gain = {"gain": round(self.gain, DIGITS), "gain_error": round(self.gain_error, DIGITS)}
        counts = {"steps": self.steps, "units": self.units}
        return counts | by_look | gain | {"learning": asdict(LEARNING)}


def steps_taken(how: Mapping[str, Any]) -> int:
    """The steps that a recipe says its coefficients took; 0 if it says none, or what is no number."""
    refined = how.get(REFINED)
    steps = refined.get("steps") if isinstance(refined, Mapping) else None
    return steps if isinstance(steps, int) else 0


def choose_steps(
    differences_SU: np.ndarray, generic_U: np.ndarray, tokens_U: np.ndarray, *, caution: float = CAUTION
) -> Refinement:
    """The look whose difference is lowest at its upper bound, mean + caution standard errors; 0 if none is below 0.

    Args:
        differences_SU: at each look, loss minus the start's, nats per token, of each unit.
        generic_U: the generic instance's loss minus the start's.
        tokens_U: that each unit was measured on; its weight in the mean.
    """
    if len(tokens_U) < LEAST_UNITS:
        return Refinement(units=len(tokens_U))
    means_S, errors_S = means_and_errors(differences_SU, tokens_U)
    bounds_S = means_S + caution * errors_S
    best = int(bounds_S.argmin())
    taken = bounds_S[best] < 0
    gained_1U = generic_U[None] - differences_SU[best : best + 1] * taken
    gain_1, gain_error_1 = means_and_errors(gained_1U, tokens_U)
    return Refinement(
        steps=LOOKS[best] if taken else 0,
        differences=tuple(means_S.tolist()),
        errors=tuple(errors_S.tolist()),
        units=len(tokens_U),
        gain=gain_1.item(),
        gain_error=gain_error_1.item(),
    )
