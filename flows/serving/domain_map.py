"""Where the domains lie on a plane: their centroids' two principal components, for the page's drawing.

Legend: K domains, D embedding size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from soe_model.soup import SoupOfExperts
from storage_schema.tree import Tree

WORDS = 8
"""Of a domain, shown."""


class DomainMap:
    """Positions and words of a soup's domains."""

    def __init__(self, soup: SoupOfExperts):
        self.positions_K2 = positions(soup.tree)
        self.generic_K = soup.tree.generic_weights
        self._words = soup.domain_words

    def words(self, domain: int) -> list[str]:
        """What sets a domain apart; empty where the soup does not know."""
        return self._words[domain][:WORDS] if domain < len(self._words) else []

    def describe(self) -> dict[str, Any]:
        """Columns over the K domains: ``x``, ``y`` (0 to 1; null for an empty domain), ``words``, ``share``."""
        x_K, y_K = (
            [None if np.isnan(v) else round(float(v), 4) for v in column] for column in self.positions_K2.T
        )
        return {
            "x": x_K,
            "y": y_K,
            "words": [self.words(domain) for domain in range(len(x_K))],
            "share": [round(float(share), 6) for share in self.generic_K],
        }

    def rows(self, weights: Mapping[int, float]) -> list[dict[str, Any]]:
        """The domains with weight, heaviest first: ``domain``, ``weight``, ``share`` of the corpus, ``words``."""
        ordered = sorted(weights.items(), key=lambda item: (-item[1], item[0]))
        return [
            {"domain": i, "weight": h, "share": float(self.generic_K[i]), "words": self.words(i)}
            for i, h in ordered
        ]

    def centre(self, weights: Mapping[int, float]) -> list[float] | None:
        """Mean position ``[x, y]`` of the domains with weight; None where none of them has one."""
        domains = [i for i in weights if not np.isnan(self.positions_K2[i]).any()]
        if not domains:
            return None
        mean = np.average(self.positions_K2[domains], axis=0, weights=[weights[i] for i in domains])
        return [round(float(v), 4) for v in mean]


def positions(tree: Tree) -> np.ndarray:
    """float64 [K, 2] in 0 to 1: the plane in which the centroids, weighted by their passages, vary most.

    Domains without passages are rows of NaN. The signs are fixed, so that the same tree gives the same picture.
    """
    there_K = np.isfinite(tree.leaves_KD).all(1)
    found_K2 = np.full((tree.num_domains, 2), np.nan)
    leaves_KD = tree.leaves_KD[there_K].astype(np.float64)
    weights_K = np.sqrt(np.maximum(tree.counts_K[there_K], 1))
    centred_KD = leaves_KD - np.average(leaves_KD, axis=0, weights=weights_K**2)
    _, _, axes_DD = np.linalg.svd(centred_KD * weights_K[:, None], full_matrices=False)
    plane_2D = axes_DD[:2]
    largest_2 = np.abs(plane_2D).argmax(1)
    plane_2D = plane_2D * np.sign(plane_2D[np.arange(len(plane_2D)), largest_2])[:, None]
    flat_K2 = np.zeros((len(leaves_KD), 2))
    flat_K2[:, : len(plane_2D)] = centred_KD @ plane_2D.T
    span = np.ptp(flat_K2, axis=0)
    found_K2[there_K] = np.where(span > 0, (flat_K2 - flat_K2.min(0)) / np.where(span > 0, span, 1), 0.5)
    return found_K2
