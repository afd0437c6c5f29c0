"""The domains that mixtures are made of: which there are, how some of them are drawn, and what their weights must be.

Legend: T steps, W mixtures per step, s domains in a mixture, K domains of the store.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from storage_schema.errors import UserError

MAX_SPARSE_SUPPORT = 256
"""Drawing s distinct domains takes O(s²) array operations, so a support is at most so large, or it is every domain."""
SUM_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class Domains:
    """The domains that mixtures are made of: those with a whole window at the run's sequence length."""

    windows_K: np.ndarray
    """int64; windows of each domain."""

    def __reduce__(self) -> tuple[type[Domains], tuple[np.ndarray]]:
        # Without cached values, a plan is small enough to travel within the description of a Ray actor.
        return Domains, (self.windows_K,)

    @cached_property
    def numbers(self) -> np.ndarray:
        """The domains that are not empty, ascending."""
        return np.flatnonzero(self.windows_K > 0)

    @cached_property
    def sizes(self) -> np.ndarray:
        """The windows of each of these domains."""
        return self.windows_K[self.numbers]


def check_weights(support: np.ndarray, weights: np.ndarray, domains: Domains, *, what: str) -> None:
    """Raise ValueError unless these are distinct domains that have windows, and their weights sum to one.

    Args:
        what: the mixture, in the words of the error.
    """
    total = len(domains.windows_K)
    if support.ndim != 1 or support.shape != weights.shape or not len(support):
        raise UserError(f"{what}: {support.shape} domains and {weights.shape} weights; give one for each.")
    if support.dtype.kind not in "iu" or not 0 <= support.min() <= support.max() < total:
        raise UserError(f"{what}: domains are numbers from 0 to {total - 1}, not {support[:8].tolist()}...")
    if len(np.unique(support)) != len(support):
        twice = np.flatnonzero(np.bincount(support) > 1)[0]
        raise UserError(f"{what}: domain {twice} occurs twice. Add its weights up.")
    bad = np.flatnonzero(~np.isfinite(weights) | (weights < 0))
    if len(bad):
        raise UserError(
            f"{what}: domain {support[bad[0]]} has weight {weights[bad[0]]}; weights are from 0 to 1."
        )
    if abs(weights.sum() - 1) > SUM_TOLERANCE:
        raise UserError(
            f"{what}: the weights sum to {weights.sum():.9g}, not to 1. Divide them by their sum."
        )
    empty = np.flatnonzero((weights > 0) & (domains.windows_K[support] == 0))
    if len(empty):
        raise UserError(
            f"{what}: domain {support[empty[0]]} has weight {weights[empty[0]]:g} but no whole window at this "
            "sequence length. Leave it out, or use shorter sequences."
        )


def check_support(size: int, domains: Domains) -> None:
    """Raise ValueError if this many distinct domains cannot be drawn."""
    there = len(domains.numbers)
    if not 1 <= size <= there:
        raise UserError(
            f"support_size is {size}; it must be between 1 and the {there} domains (of "
            f"{len(domains.windows_K)}) that hold a whole window."
        )
    if MAX_SPARSE_SUPPORT < size < there:
        raise UserError(
            f"support_size is {size}; it must be at most {MAX_SPARSE_SUPPORT}, or all {there} domains that hold "
            "a whole window."
        )


def draw_support(uniform: np.ndarray, domains: Domains, *, by_size: bool) -> np.ndarray:
    """Draw distinct domains, ascending, int64 [..., s], from uniform numbers [..., s].

    Each domain has one ticket or, if `by_size`, as many as it has windows. Draw i picks a number among the tickets of
    the domains not taken yet, and moves it past the tickets of each smaller domain that is taken.
    """
    size = uniform.shape[-1]
    if size == len(domains.numbers):
        return np.broadcast_to(domains.numbers, uniform.shape)
    tickets = domains.sizes if by_size else np.ones_like(domains.sizes)
    ends = np.cumsum(tickets)
    taken = np.empty(uniform.shape, np.int64)
    left = np.full(uniform.shape[:-1], ends[-1])
    for i in range(size):
        ticket = (uniform[..., i] * left).astype(np.int64)
        for j in range(i):  # taken[..., :i] is ascending
            earlier = taken[..., j]
            ticket += np.where(ticket >= ends[earlier] - tickets[earlier], tickets[earlier], 0)
        taken[..., i] = drawn = np.searchsorted(ends, ticket, side="right")
        left = left - tickets[drawn]
        taken[..., : i + 1] = np.sort(taken[..., : i + 1], axis=-1)
    return domains.numbers[taken]


def drawn_by_size(uniform: np.ndarray, domains: Domains) -> np.ndarray:
    """The domain of a random window for each uniform number, int64."""
    ends = np.cumsum(domains.sizes)
    return domains.numbers[np.searchsorted(ends, (uniform * ends[-1]).astype(np.int64), side="right")]


def normalised(weights: np.ndarray) -> np.ndarray:
    """Divide by the sum over the last axis, which is added in a fixed order. All zeros become equal weights."""
    total = np.cumsum(weights, axis=-1)[..., -1:]
    return np.where(total > 0, weights / np.where(total > 0, total, 1), 1 / weights.shape[-1])
