"""The plan is the dataset: which mixture, domain and window fills each slot of each step.

``plan.steps(start, stop)`` is a pure function of the seed and the step. Every draw is made by our own
arithmetic from the raw bits of a counter-based generator (Philox), because the distributions of random
libraries change between versions; step t owns words [t*R, (t+1)*R) of one stream, so any step costs the
same and a run resumes from one integer.

A mixture (section 2.4): `support_size` distinct domains, uniformly; uniform weights on them, normalised.
A slot (Algorithm 1): a domain by the mixture's weights, then one of its windows uniformly.

Legend: T steps, W mixtures a step, s domains in a mixture, B slots (sequences) a step, K domains.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from storage_schema.manifest import content_digest

PLAN_VERSION = 1
MAX_SPARSE_SUPPORT = 256
"""Distinct draws take O(s²) array operations; a support is sparse, or it is every domain."""


@dataclass(frozen=True, kw_only=True)
class Steps:
    """T consecutive steps of a plan."""

    start: int
    support_TWs: np.ndarray
    """int64; the domains of each mixture, ascending."""
    weights_TWs: np.ndarray
    """float64; their weights, summing to one."""
    domain_TB: np.ndarray
    """int64; the domain of each slot. Slots [w*B/W, (w+1)*B/W) belong to mixture w."""
    row_TB: np.ndarray
    """int64; the window of that domain."""

    def domain_weights(self, step: int, num_domains: int) -> np.ndarray:
        """The W domain weights of one step, dense float64 [W, K]."""
        t = step - self.start
        dense_WK = np.zeros((self.support_TWs.shape[1], num_domains))
        np.put_along_axis(dense_WK, self.support_TWs[t], self.weights_TWs[t], axis=1)
        return dense_WK


class MixturePlan:
    """The plan of one run.

    Args:
        windows_K: int64, windows of each domain at the run's sequence length; empty domains are never drawn.
        batch_size: B, a multiple of `mixtures_per_step`.
        support_size: s, at most the number of domains that are not empty.
        fixed_weights_K: instead of random mixtures, the same domain weights every step (generic
            pretraining is the weights proportional to `windows_K`; CRISP those of a specialist set).
        store_digest: of the domains the plan was made for; part of the plan's own digest.
        sequence_length: tokens in a window; part of the digest.
    """

    def __init__(
        self,
        windows_K: np.ndarray,
        *,
        seed: int,
        batch_size: int,
        mixtures_per_step: int = 1,
        support_size: int = 4,
        fixed_weights_K: np.ndarray | None = None,
        store_digest: str = "",
        sequence_length: int = 0,
    ):
        self.windows_K = np.asarray(windows_K, dtype=np.int64)
        self.seed, self.batch_size, self.mixtures_per_step = seed, batch_size, mixtures_per_step
        self.eligible = np.flatnonzero(self.windows_K > 0)
        self.fixed_weights_K = fixed_weights_K
        self._check(support_size)
        if fixed_weights_K is not None:
            self._fixed_support = np.flatnonzero(fixed_weights_K)
            support_size = len(self._fixed_support)
        self.support_size = support_size
        self.digest = content_digest(
            {
                "version": PLAN_VERSION,
                "seed": seed,
                "batch_size": batch_size,
                "mixtures_per_step": mixtures_per_step,
                "support_size": support_size,
                "fixed_weights": None if fixed_weights_K is None else [float(x) for x in fixed_weights_K],
                "store": store_digest,
                "sequence_length": sequence_length,
            }
        )

    @property
    def num_domains(self) -> int:
        return len(self.windows_K)

    def steps(self, start: int, stop: int) -> Steps:
        """The steps [start, stop), vectorised over them."""
        if not 0 <= start < stop:
            raise ValueError(f"steps [{start}, {stop}) is not a range of steps.")
        count, width, slots = stop - start, self.mixtures_per_step, self.batch_size
        if self.fixed_weights_K is None:
            uniform = self._uniform(start, count, 2 * width * self.support_size + 2 * slots)
            draws, uniform = np.split(uniform, [2 * width * self.support_size], axis=1)
            draws = draws.reshape(count, width, 2, self.support_size)
            support_TWs = self.eligible[_distinct(draws[:, :, 0], len(self.eligible))]
            weights_TWs = _normalised(draws[:, :, 1])
        else:
            uniform = self._uniform(start, count, 2 * slots)
            shape = (count, width, len(self._fixed_support))
            support_TWs = np.broadcast_to(self._fixed_support, shape)
            weights_TWs = np.broadcast_to(_normalised(self.fixed_weights_K[self._fixed_support]), shape)
        domain_TB = self._domains(support_TWs, weights_TWs, uniform[:, :slots])
        row_TB = (uniform[:, slots:] * self.windows_K[domain_TB]).astype(np.int64)
        return Steps(
            start=start, support_TWs=support_TWs, weights_TWs=weights_TWs, domain_TB=domain_TB, row_TB=row_TB
        )

    def mixture_of_slot(self) -> np.ndarray:
        """int64[B]: the mixture each slot belongs to."""
        return np.arange(self.batch_size) // (self.batch_size // self.mixtures_per_step)

    def _uniform(self, start: int, count: int, needed: int) -> np.ndarray:
        """float64 [count, needed] in [0, 1): 53 bits of each step's own words of the stream."""
        words = -(-needed // 4) * 4
        generator = np.random.Philox(key=self.seed)
        generator.advance(start * words // 4)
        raw = generator.random_raw(count * words).reshape(count, words)[:, :needed]
        return (raw >> np.uint64(11)) * 2.0**-53

    def _domains(
        self, support_TWs: np.ndarray, weights_TWs: np.ndarray, uniform_TB: np.ndarray
    ) -> np.ndarray:
        """Inverse-CDF draw of a domain for every slot from its mixture's weights."""
        count, width, _ = support_TWs.shape
        uniform = uniform_TB.reshape(count, width, -1)
        if self.fixed_weights_K is not None:
            cumulative = np.cumsum(weights_TWs[0, 0])
            picked = np.searchsorted(cumulative, uniform * cumulative[-1], side="right")
        else:
            cumulative = np.cumsum(weights_TWs, axis=2)
            picked = (
                uniform[..., None] * cumulative[..., -1:, None].swapaxes(2, 3) >= cumulative[:, :, None]
            ).sum(-1)
        picked = np.minimum(picked, support_TWs.shape[2] - 1)
        return np.take_along_axis(support_TWs, picked, axis=2).reshape(count, -1)

    def _check(self, support_size: int) -> None:
        if self.batch_size < 1 or self.batch_size % self.mixtures_per_step:
            raise ValueError(
                f"batch_size {self.batch_size} is not a positive multiple of mixtures_per_step "
                f"{self.mixtures_per_step}."
            )
        if not len(self.eligible):
            raise ValueError("every domain is empty at this sequence length; use a shorter one or more text.")
        if self.fixed_weights_K is None:
            if not 1 <= support_size <= len(self.eligible):
                raise ValueError(
                    f"support_size is {support_size}; it must be between 1 and the {len(self.eligible)} domains "
                    f"(of {self.num_domains}) that hold a whole window."
                )
            if MAX_SPARSE_SUPPORT < support_size < len(self.eligible):
                raise ValueError(
                    f"support_size is {support_size}; it must be at most {MAX_SPARSE_SUPPORT}, or all "
                    f"{len(self.eligible)} domains that hold a whole window."
                )
            return
        if len(self.fixed_weights_K) != self.num_domains:
            raise ValueError(f"{len(self.fixed_weights_K)} domain weights for {self.num_domains} domains.")
        empty = np.flatnonzero((self.fixed_weights_K > 0) & (self.windows_K == 0))
        if len(empty):
            raise ValueError(
                f"domain {empty[0]} has weight {self.fixed_weights_K[empty[0]]:g} but no whole window."
            )


def generic_weights(windows_K: np.ndarray) -> np.ndarray:
    """The generic mixture: every window equally likely, so each domain by its size. float64 [K]."""
    windows_K = np.asarray(windows_K)
    if not windows_K.sum():
        raise ValueError("every domain is empty at this sequence length; use a shorter one or more text.")
    return windows_K / windows_K.sum()


def _normalised(weights: np.ndarray) -> np.ndarray:
    """Divide by the sum over the last axis, added in a fixed order; all zeros become equal weights."""
    total = np.cumsum(weights, axis=-1)[..., -1:]
    return np.where(total > 0, weights / np.where(total > 0, total, 1), 1 / weights.shape[-1])


def _distinct(uniform: np.ndarray, population: int) -> np.ndarray:
    """Distinct integers below `population`, ascending, from uniforms [..., s].

    Draw i takes one of the numbers not taken yet: an index among them, moved past each smaller taken one.
    """
    size = uniform.shape[-1]
    if size == population:
        return np.broadcast_to(np.arange(size), uniform.shape)
    taken = np.empty(uniform.shape, dtype=np.int64)
    for i in range(size):
        value = (uniform[..., i] * (population - i)).astype(np.int64)
        for j in range(i):  # taken[..., :i] is ascending
            value += value >= taken[..., j]
        taken[..., i] = value
        taken[..., : i + 1] = np.sort(taken[..., : i + 1], axis=-1)
    return taken
