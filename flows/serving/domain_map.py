"""What the page shows of a soup's domains: their positions on the map, their words and their weights.

Legend: K domains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pipeline.reports.domain_plane import centre, positions
from soe_model.files.soup import SoupOfExperts

WORDS = 8
"""Words shown per domain."""


class DomainMap:
    """The positions and words of a soup's domains."""

    def __init__(self, soup: SoupOfExperts):
        self.positions_K2 = positions(soup.tree)
        self.generic_K = soup.tree.generic_weights
        self._words = soup.domain_words

    def words(self, domain: int) -> list[str]:
        """The words that set a domain apart; empty if the soup has none."""
        return self._words[domain][:WORDS] if domain < len(self._words) else []

    def describe(self) -> dict[str, Any]:
        """Columns over the K domains: ``x``, ``y`` (0 to 1; null for an empty domain), ``words``, ``share``."""
        x_K, y_K = (
            [None if math.isnan(v) else round(float(v), 4) for v in column] for column in self.positions_K2.T
        )
        return {
            "x": x_K,
            "y": y_K,
            "words": [self.words(domain) for domain in range(len(x_K))],
            "share": [round(float(share), 6) for share in self.generic_K],
        }

    def rows(self, weights: Mapping[int, float]) -> list[dict[str, Any]]:
        """The domains that have weight, heaviest first: ``domain``, ``weight``, ``share`` of the corpus, ``words``."""
        ordered = sorted(weights.items(), key=lambda item: (-item[1], item[0]))
        return [
            {"domain": i, "weight": h, "share": float(self.generic_K[i]), "words": self.words(i)}
            for i, h in ordered
        ]

    def centre(self, weights: Mapping[int, float]) -> list[float] | None:
        """Mean position ``[x, y]`` of the domains that have weight; None if none of them has a position."""
        mean_2 = centre(self.positions_K2, weights)
        return None if mean_2 is None else [round(float(v), 4) for v in mean_2]
