"""The plan of a run: which mixture, domain and window fills each slot of each step.

``plan.steps(start, stop)`` is a pure function of the seed and the step. Every draw is made by our own arithmetic from
the raw bits of a counter-based generator (Philox), because the distributions of random libraries change between
versions. There are two streams of words, one for mixtures and one for slots, and step t owns the words [t*R, (t+1)*R)
of each. So every step costs the same, a run resumes from one integer, and recorded mixtures give the same slots again.

A mixture comes from the meta-distribution (``meta_distributions.py``). For a slot (Algorithm 1), a domain is drawn by
its mixture's weights, then one of the domain's windows uniformly.

Legend: T steps, W mixtures per step, s domains in a mixture, B slots (sequences) per step, K domains.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from pipeline.mixtures.compositions import laws_of
from pipeline.mixtures.meta_distributions import MetaDistribution
from pipeline.mixtures.supports import Domains
from storage_schema.errors import UserError
from storage_schema.manifest import content_digest

PLAN_VERSION = 2
MIXTURES, SLOTS = 0, 1
"""The streams of a seed."""
WIDE = 32
"""Up to this many domains in a mixture, a slot's domain is found by comparing with all weights; above, by bisection."""


@dataclass(frozen=True, kw_only=True)
class Steps:
    """T consecutive steps of a plan."""

    start: int
    support_TWs: np.ndarray
    """int64; the domains of each mixture, ascending, padded with the last one if a mixture has fewer than s."""
    weights_TWs: np.ndarray
    """float64; the weights of these domains, zero for padding. They sum to one."""
    domain_TB: np.ndarray
    """int64; the domain of each slot that was asked for. Slots [w*B/W, (w+1)*B/W) belong to mixture w."""
    row_TB: np.ndarray
    """int64; the number of the window in that domain."""

    @property
    def constant(self) -> bool:
        """Whether all steps share the same mixtures, because one array stands for all of them."""
        return self.support_TWs.strides[0] == self.weights_TWs.strides[0] == 0

    def domain_weights(self, step: int, num_domains: int) -> np.ndarray:
        """The W domain weights of one step, dense float64 [W, K]."""
        t = step - self.start
        pairs = zip(self.support_TWs[t], self.weights_TWs[t], strict=True)
        return np.stack([np.bincount(support, weights, num_domains) for support, weights in pairs])


class MixturePlan:
    """The plan of one run.

    Args:
        windows_K: int64, windows of each domain at the run's sequence length; empty domains are never drawn.
        meta_distribution: the law that mixtures are drawn from.
        batch_size: B, a multiple of `mixtures_per_step`.
        store_digest: the digest of the domains the plan is made for; part of the plan's own digest.
        sequence_length: tokens in a window; part of the digest.

    Raises:
        ValueError: `batch_size` is not a multiple of `mixtures_per_step`, no domain has a window, or the law does not
            fit these domains.
    """

    def __init__(
        self,
        windows_K: np.ndarray,
        meta_distribution: MetaDistribution,
        *,
        seed: int,
        batch_size: int,
        mixtures_per_step: int = 1,
        store_digest: str = "",
        sequence_length: int = 0,
    ):
        self.domains = Domains(np.asarray(windows_K, dtype=np.int64))
        self.meta_distribution = meta_distribution
        self.seed, self.batch_size, self.mixtures_per_step = seed, batch_size, mixtures_per_step
        if batch_size < 1 or mixtures_per_step < 1 or batch_size % mixtures_per_step:
            raise UserError(
                f"batch_size {batch_size} is not a positive multiple of mixtures_per_step {mixtures_per_step}. Change "
                "one of them."
            )
        if not 0 <= seed < 1 << 64:
            raise UserError(f"seed is {seed}; it must be from 0 to 2^64 - 1.")
        if not len(self.domains.numbers):
            raise UserError("every domain is empty at this sequence length; use a shorter one or more text.")
        meta_distribution.check(self.domains)
        self.facts: dict[str, Any] = {
            "plan_version": PLAN_VERSION,
            "seed": seed,
            "batch_size": batch_size,
            "mixtures_per_step": mixtures_per_step,
            "meta_distribution": meta_distribution.description,
            "store": store_digest,
            "sequence_length": sequence_length,
        }
        """Everything that decides the batches. A resumed run compares it."""
        self.digest = content_digest(self.facts)

    @property
    def num_domains(self) -> int:
        return len(self.domains.windows_K)

    def steps(self, start: int, stop: int, slots: slice = slice(None)) -> Steps:
        """The steps [start, stop), computed together. Fewer `slots` cost less.

        Raises ValueError if this is not a range of steps.
        """
        if not 0 <= start < stop:
            raise UserError(f"steps [{start}, {stop}) is not a range of steps.")
        support_TWs, weights_TWs = self._mixtures(self.meta_distribution, start, stop)
        for_domain, for_row = self._uniform(SLOTS, start, stop - start, (2, self.batch_size), slots)
        domain_TB = _domains(support_TWs, weights_TWs, for_domain, self.mixture_of_slot()[slots])
        row_TB = (for_row * self.domains.windows_K[domain_TB]).astype(np.int64)
        return Steps(
            start=start, support_TWs=support_TWs, weights_TWs=weights_TWs, domain_TB=domain_TB, row_TB=row_TB
        )

    def check_tables(self, steps: int) -> None:
        """Raise ValueError if a table of mixtures has no row for each mixture of a run of so many steps.

        One of several laws must have them all, too: whether it draws the last mixture depends on the seed.
        """
        for law in laws_of(self.meta_distribution):
            self._mixtures(law, steps - 1, steps)

    def first_mixtures(self, count: int, *, stop: int) -> np.ndarray:
        """The domain weights of the run's first mixtures, dense float64 [M, K]: `count`, or all before step `stop`."""
        last = min(-(-count // self.mixtures_per_step), stop)
        steps = self.steps(0, last, slice(0))
        return np.concatenate([steps.domain_weights(step, self.num_domains) for step in range(last)])[:count]

    def mixture_of_slot(self) -> np.ndarray:
        """int64[B]: the mixture each slot belongs to."""
        return np.arange(self.batch_size) // (self.batch_size // self.mixtures_per_step)

    def _mixtures(self, law: MetaDistribution, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """What `law` draws for the steps [start, stop): domains int64 [T, W, s], weights float64 [T, W, s]."""
        count, width = stop - start, self.mixtures_per_step
        needed = width * law.uniforms(self.domains)
        [uniform_TWu] = self._uniform(MIXTURES, start, count, (1, needed), slice(None))
        number_TW = np.arange(start * width, stop * width).reshape(count, width)
        return law.draw(self.domains, number_TW, uniform_TWu.reshape(count, width, -1))

    def _uniform(
        self, stream: int, start: int, count: int, shape: tuple[int, int], columns: slice
    ) -> np.ndarray:
        """Uniform numbers in [0, 1), float64 ``[shape[0], count, columns of shape[1]]``: each is 53 bits of one of the
        step's own words in the stream.
        """
        if not range(shape[1])[columns]:
            return np.empty((shape[0], count, 0))
        needed = shape[0] * shape[1]
        words = -(-needed // 4) * 4
        generator = np.random.Philox(key=np.array([self.seed, stream], np.uint64))
        generator.advance(start * words // 4)
        raw = generator.random_raw(count * words).reshape(count, words)[:, :needed]
        chosen = raw.reshape(count, *shape)[:, :, columns].swapaxes(0, 1)
        return (chosen >> np.uint64(11)) * 2.0**-53


def _domains(
    support_TWs: np.ndarray, weights_TWs: np.ndarray, uniform_TB: np.ndarray, mixture_B: np.ndarray
) -> np.ndarray:
    """A domain for each slot, int64 [T, B]: its uniform number is looked up in its mixture's cumulative weights."""
    if not len(mixture_B):
        return np.empty(uniform_TB.shape, np.int64)
    if weights_TWs.strides[0] == 0:  # all steps share the mixtures, so they are summed once
        weights_TWs = weights_TWs[:1]
    ends_TWs = np.cumsum(weights_TWs, axis=-1)
    point_TB = uniform_TB * ends_TWs[:, mixture_B, -1]
    if ends_TWs.shape[-1] <= WIDE:
        picked_TB = (point_TB[..., None] >= ends_TWs[:, mixture_B]).sum(-1)
    else:
        picked_TB = np.empty(point_TB.shape, np.int64)
        together = len(point_TB) if len(ends_TWs) == 1 else 1
        for begin, end in pairwise(np.flatnonzero(np.diff(mixture_B, prepend=-1, append=-1))):
            for t, ends_s in enumerate(ends_TWs[:, mixture_B[begin]]):
                at = slice(t, t + together), slice(begin, end)
                picked_TB[at] = _bisected(ends_s, point_TB[at])
    # Rounding may put a point at the very end. It belongs to the last domain that has a weight.
    last_TW = weights_TWs.shape[-1] - 1 - (weights_TWs[..., ::-1] > 0).argmax(-1)
    picked_TB = np.minimum(picked_TB, last_TW[:, mixture_B])
    return support_TWs[np.arange(len(support_TWs))[:, None], mixture_B, picked_TB]


def _bisected(ends_s: np.ndarray, points: np.ndarray) -> np.ndarray:
    """How many of the ascending ends are at or before each point. Sorting the points first makes it three times as
    fast.
    """
    order = np.argsort(points, axis=None)
    picked = np.empty(points.size, np.int64)
    picked[order] = np.searchsorted(ends_s, points.reshape(-1)[order], side="right")
    return picked.reshape(points.shape)
