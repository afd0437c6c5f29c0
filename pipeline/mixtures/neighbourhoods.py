"""The law of neighbourhoods: a mixture of the domains around a random passage.

Real sets of texts fall into domains that lie near each other. Domains that are drawn independently do not.

Legend: T steps, W mixtures per step, M of these, K domains of the store, n that are not empty, D embedding size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from pipeline.mixtures.supports import Domains, drawn_by_size, normalised
from storage_schema.errors import UserError

SCALES = (0.05, 0.1, 0.2, 0.4)
"""Squared distances of sentence embeddings of unit norm: from a few neighbours to a large part of the corpus."""
GRID = 2.0**14
"""Centroids are rounded to a grid of so many points per unit. Their squared distances are then sums of whole numbers
below 2^53, which float64 adds exactly in any order, so that every machine's matrix product gives the same bits."""
TOO_LONG = 2.0**51
"""A centroid of this squared norm on the grid, or more, has no exact distances: a length of 2896."""
AT_ONCE = 64
"""Mixtures whose distances to all domains are held together."""


class Neighbourhood:
    """Domain c weighs ``windows_c exp(-||centroid_c - centroid_k||² / scale)``, divided by the sum.

    k is the domain of a random window, so a domain's chance is its share of windows; each scale is equally likely.

    Args:
        centroids_KD: float; the domains' centroids. Those of empty domains are not read.
        scales: squared L2 distances between centroids, 0 to 4 for unit vectors; each is drawn equally often.

    Raises:
        ValueError: a scale is not a positive number, or a centroid is too long.
    """

    def __init__(self, centroids_KD: np.ndarray, scales: Sequence[float] = SCALES):
        self.scales = tuple(float(scale) for scale in scales)
        for scale in self.scales:
            if not 1e-6 <= scale <= 1e6:
                raise UserError(f"a scale is {scale}; it must be between 0.000001 and 1000000.")
        if not self.scales:
            raise UserError("scales is empty: give at least one squared distance.")
        self._known_K = np.isfinite(centroids_KD).all(1)
        grid_KD = np.rint(np.where(self._known_K[:, None], centroids_KD, 0) * GRID)
        if np.square(grid_KD).sum(1).max(initial=0) >= TOO_LONG:
            raise UserError(
                f"a centroid is longer than {TOO_LONG**0.5 / GRID:.0f}: use an embedder whose vectors are about of "
                "unit norm."
            )
        self._grid_KD = grid_KD.astype(np.int32)

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled with a plan: what was given, without what is computed from it."""
        return {
            name: value for name, value in self.__dict__.items() if name not in ("_points_KD", "_norms_K")
        }

    @property
    def description(self) -> dict[str, Any]:
        digest = hashlib.sha256(self._grid_KD.astype("<i4").tobytes()).hexdigest()
        return {"law": "neighbourhood", "scales": list(self.scales), "centroids": digest}

    def check(self, domains: Domains) -> None:
        if len(self._known_K) != len(domains.windows_K):
            raise UserError(
                f"{len(self._known_K)} centroids for {len(domains.windows_K)} domains: give one for each."
            )
        unknown = domains.numbers[~self._known_K[domains.numbers]]
        if len(unknown):
            raise UserError(f"domain {unknown[0]} holds text and has no centroid. Rebuild the domains.")

    def uniforms(self, domains: Domains) -> int:
        return 2

    def draw(
        self, domains: Domains, number_TW: np.ndarray, uniform_TWu: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        for_centre_M, for_scale_M = uniform_TWu.reshape(-1, 2).T
        centre_M = drawn_by_size(for_centre_M, domains)
        scale_M = np.array(self.scales)[(for_scale_M * len(self.scales)).astype(np.int64)]
        weights_Mn = np.empty((len(centre_M), len(domains.numbers)))
        for first in range(0, len(centre_M), AT_ONCE):
            rows = slice(first, first + AT_ONCE)
            squares = self._squared_distances(centre_M[rows])[:, domains.numbers]
            weights_Mn[rows] = normalised(domains.sizes * exp_of_minus(squares / scale_M[rows, None]))
        shape = (*number_TW.shape, len(domains.numbers))
        return np.broadcast_to(domains.numbers, shape), weights_Mn.reshape(shape)

    @cached_property
    def _points_KD(self) -> np.ndarray:
        return self._grid_KD.astype(np.float64)

    @cached_property
    def _norms_K(self) -> np.ndarray:
        return np.square(self._points_KD).sum(1)

    def _squared_distances(self, domain_M: np.ndarray) -> np.ndarray:
        """Of these domains' centroids to all, float64 [M, K], without a rounding error."""
        products_MK = self._points_KD[domain_M] @ self._points_KD.T
        return (self._norms_K[domain_M, None] + self._norms_K - 2 * products_MK) / GRID**2


def exp_of_minus(x: np.ndarray) -> np.ndarray:
    """exp(-x) for x >= 0, to 10^-6 of itself while it is above 10^-17.

    Additions and multiplications alone give the same bits on every machine; np.exp differs in the last bit.
    """
    small = np.minimum(x, 1000.0) / 1024
    result = 1 - small * (1 - small / 2 * (1 - small / 3 * (1 - small / 4)))
    for _ in range(10):
        result *= result
    return result
