"""Comparing the sequences that a run draws with the mixtures they are drawn from.

Legend: T steps, W mixtures per step, s domains in a mixture, B slots per step, K domains.
"""

from __future__ import annotations

import numpy as np

from pipeline.mixtures.plan import MixturePlan


class MixtureTally:
    """Counts the sequences drawn from each domain, and adds up the domain weights they were drawn with."""

    def __init__(self, plan: MixturePlan):
        self._plan = plan
        self._target_K = np.zeros(plan.num_domains)
        self._drawn_K = np.zeros(plan.num_domains, np.int64)

    def add(self, start: int, stop: int) -> None:
        """Count all slots of the steps [start, stop)."""
        if start == stop:
            return
        steps, plan = self._plan.steps(start, stop), self._plan
        share = plan.batch_size / plan.mixtures_per_step
        support, weights = steps.support_TWs.reshape(-1), steps.weights_TWs.reshape(-1)
        self._target_K += share * np.bincount(support, weights, plan.num_domains)
        self._drawn_K += np.bincount(steps.domain_TB.reshape(-1), minlength=plan.num_domains)

    @property
    def distance(self) -> float:
        """Total variation between target and drawn shares, 0 to 1.

        For n draws from shares p_k it is about sum_k sqrt(p_k / (2 pi n)), so it falls with the root of the number of
        steps.
        """
        drawn = self._drawn_K.sum()
        return float(0.5 * np.abs(self._target_K - self._drawn_K).sum() / drawn) if drawn else 0.0

    @property
    def domains_drawn(self) -> int:
        """How many domains a sequence was drawn from."""
        return int(np.count_nonzero(self._drawn_K))
