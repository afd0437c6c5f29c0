"""The plan is the dataset: which mixture, domain and window fills each slot of each step.

``plan.steps(start, stop)`` is a pure function of the seed and the step. Every draw is made by our own
arithmetic from the raw bits of a counter-based generator (Philox), because the distributions of random
libraries change between versions. Step t owns words [t*R, (t+1)*R) of each of two streams, one for mixtures and
one for slots: any step costs the same, a run resumes from one integer, and mixtures that were recorded give the
same slots again.

A mixture comes from the meta-distribution (``meta_distributions.py``). A slot (Algorithm 1): a domain by its
mixture's weights, then one of its windows uniformly.

Legend: T steps, W mixtures a step, s domains in a mixture, B slots (sequences) a step, K domains.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.meta_distributions import Domains, MetaDistribution
from storage_schema.manifest import content_digest

PLAN_VERSION = 2
MIXTURES, SLOTS = 0, 1
"""The streams of a seed."""
WIDE = 32
"""A slot's domain is found by comparing with all s weights up to so many, else by bisection, mixture by mixture."""


@dataclass(frozen=True, kw_only=True)
class Steps:
    """T consecutive steps of a plan."""

    start: int
    support_TWs: np.ndarray
    """int64; the domains of each mixture, ascending; padded with the last one where a mixture has fewer."""
    weights_TWs: np.ndarray
    """float64; their weights, summing to one; zero where padded."""
    domain_TB: np.ndarray
    """int64; the domain of each slot. Slots [w*B/W, (w+1)*B/W) belong to mixture w."""
    row_TB: np.ndarray
    """int64; the window of that domain."""

    def domain_weights(self, step: int, num_domains: int) -> np.ndarray:
        """The W domain weights of one step, dense float64 [W, K]."""
        t = step - self.start
        dense_WK = np.zeros((self.support_TWs.shape[1], num_domains))
        mixture = np.arange(len(dense_WK))[:, None]
        np.add.at(dense_WK, (mixture, self.support_TWs[t]), self.weights_TWs[t])
        return dense_WK


class MixturePlan:
    """The plan of one run.

    Args:
        windows_K: int64, windows of each domain at the run's sequence length; empty domains are never drawn.
        meta_distribution: the law that mixtures are drawn from.
        batch_size: B, a multiple of `mixtures_per_step`.
        store_digest: of the domains the plan was made for; part of the plan's own digest.
        sequence_length: tokens in a window; part of the digest.

    Raises:
        ValueError: a batch that the mixtures do not divide, no domain with a window, or a law that does not fit
            these domains.
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
            raise ValueError(
                f"batch_size {batch_size} is not a positive multiple of mixtures_per_step {mixtures_per_step}."
            )
        if not len(self.domains.numbers):
            raise ValueError("every domain is empty at this sequence length; use a shorter one or more text.")
        meta_distribution.check(self.domains)
        self.facts = {
            "plan_version": PLAN_VERSION,
            "seed": seed,
            "batch_size": batch_size,
            "mixtures_per_step": mixtures_per_step,
            "meta_distribution": meta_distribution.description,
            "store": store_digest,
            "sequence_length": sequence_length,
        }
        """All that decides the batches: what a resumed run compares."""
        self.digest = content_digest(self.facts)

    @property
    def num_domains(self) -> int:
        return len(self.domains.windows_K)

    def steps(self, start: int, stop: int) -> Steps:
        """The steps [start, stop), vectorised over them."""
        if not 0 <= start < stop:
            raise ValueError(f"steps [{start}, {stop}) is not a range of steps.")
        count, width, slots = stop - start, self.mixtures_per_step, self.batch_size
        needed = width * self.meta_distribution.uniforms(self.domains)
        uniform_TWu = self._uniform(MIXTURES, start, count, needed).reshape(count, width, -1)
        support_TWs, weights_TWs = self.meta_distribution.draw(self.domains, start * width, uniform_TWu)
        uniform = self._uniform(SLOTS, start, count, 2 * slots)
        domain_TB = _domains(support_TWs, weights_TWs, uniform[:, :slots].reshape(count, width, -1))
        row_TB = (uniform[:, slots:] * self.domains.windows_K[domain_TB]).astype(np.int64)
        return Steps(
            start=start, support_TWs=support_TWs, weights_TWs=weights_TWs, domain_TB=domain_TB, row_TB=row_TB
        )

    def mixture_of_slot(self) -> np.ndarray:
        """int64[B]: the mixture each slot belongs to."""
        return np.arange(self.batch_size) // (self.batch_size // self.mixtures_per_step)

    def _uniform(self, stream: int, start: int, count: int, needed: int) -> np.ndarray:
        """float64 [count, needed] in [0, 1): 53 bits of each step's own words of a stream."""
        words = -(-needed // 4) * 4
        if not words:
            return np.empty((count, 0))
        generator = np.random.Philox(key=np.array([self.seed, stream], np.uint64))
        generator.advance(start * words // 4)
        raw = generator.random_raw(count * words).reshape(count, words)[:, :needed]
        return (raw >> np.uint64(11)) * 2.0**-53


def _domains(support_TWs: np.ndarray, weights_TWs: np.ndarray, uniform_TWb: np.ndarray) -> np.ndarray:
    """A domain for every slot, int64 [T, B]: where its uniform number falls among its mixture's summed weights."""
    count, width, size = support_TWs.shape
    ends_TWs = np.cumsum(weights_TWs, axis=-1)
    point_TWb = uniform_TWb * ends_TWs[..., -1:]
    if size <= WIDE:
        picked = (point_TWb[..., None] >= ends_TWs[:, :, None]).sum(-1)
    else:
        flat_ends, flat_points = ends_TWs.reshape(-1, size), point_TWb.reshape(count * width, -1)
        pairs = zip(flat_ends, flat_points, strict=True)
        picked = np.stack([np.searchsorted(ends, points, side="right") for ends, points in pairs])
        picked = picked.reshape(point_TWb.shape)
    # Rounding may put a point on the very end: it belongs to the last domain that has a weight.
    last = size - 1 - (weights_TWs[..., ::-1] > 0).argmax(-1)
    picked = np.minimum(picked, last[..., None])
    return np.take_along_axis(support_TWs, picked, axis=2).reshape(count, -1)
