"""Laws made of other laws: mixed with the generic mixture, or one of several for each mixture.

Legend: T steps, W mixtures per step, M of these, s domains in a mixture, n domains that are not empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pipeline.mixtures.meta_distributions import MetaDistribution
from pipeline.mixtures.supports import Domains
from storage_schema.errors import UserError

GenericShare = float | Literal["uniform", "triangular"]
"""Part of a mixture that is the generic one: a number from 0 to 1, or drawn for each mixture from a law. ``uniform``:
every part is equally likely. ``triangular``: 1 - √u, where small parts are likelier: a third on average."""


@dataclass(frozen=True, kw_only=True)
class WithGeneric:
    """``(1 - share) * law + share * generic``: a mixture that partly resembles the whole corpus, as sets of texts do.

    The generic mixture has all domains, in proportion to their windows, so a mixture has all of them too.
    """

    law: MetaDistribution
    share: GenericShare

    def __post_init__(self) -> None:
        if isinstance(self.share, str) or not 0 <= self.share <= 1:
            if self.share not in ("uniform", "triangular"):
                raise UserError(
                    f"the generic share is {self.share!r}; it must be a number from 0 to 1, 'uniform' or 'triangular'."
                )

    @property
    def description(self) -> dict[str, Any]:
        return {"law": "with generic", "share": self.share, "of": self.law.description}

    def check(self, domains: Domains) -> None:
        self.law.check(domains)

    def uniforms(self, domains: Domains) -> int:
        return self.law.uniforms(domains) + 1

    def draw(
        self, domains: Domains, number_TW: np.ndarray, uniform_TWu: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        own_TW = self._own_share(uniform_TWu[..., 0])
        support_TWs, weights_TWs = self.law.draw(domains, number_TW, uniform_TWu[..., 1:])
        shape = (*number_TW.shape, len(domains.numbers))
        weights_TWn = own_TW[..., None] * _spread(support_TWs, weights_TWs, domains).reshape(shape)
        weights_TWn += (1 - own_TW[..., None]) * (domains.sizes / domains.sizes.sum())
        return np.broadcast_to(domains.numbers, shape), weights_TWn

    def _own_share(self, uniform: np.ndarray) -> np.ndarray:
        """How much of each mixture is the law's own."""
        match self.share:
            case "uniform":
                return uniform
            case "triangular":
                return np.sqrt(uniform)
        return np.full_like(uniform, 1 - self.share)


@dataclass(frozen=True)
class Mixed:
    """One of several laws for each mixture, by the mixture's own uniform number."""

    laws: tuple[tuple[float, MetaDistribution], ...]
    """Share of the mixtures, and law. Shares are divided by their sum."""

    def __post_init__(self) -> None:
        if not self.laws:
            raise UserError("there are no laws to mix: give at least one, with its share of the mixtures.")
        for share, law in self.laws:
            if not 0 < share < np.inf:
                raise UserError(
                    f"the share of the law {law.description['law']} is {share}; it must be positive and finite."
                )
        if not (total := sum(float(share) for share, _ in self.laws)) < np.inf:
            raise UserError(
                f"the shares of the laws sum to {total}; the sum must be finite. Give smaller ones: they are divided "
                "by their sum."
            )

    @property
    def description(self) -> dict[str, Any]:
        return {"law": "mixed", "laws": [{"share": share, "of": law.description} for share, law in self.laws]}

    def check(self, domains: Domains) -> None:
        for _, law in self.laws:
            law.check(domains)

    def uniforms(self, domains: Domains) -> int:
        return 1 + max(law.uniforms(domains) for _, law in self.laws)

    def draw(
        self, domains: Domains, number_TW: np.ndarray, uniform_TWu: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        ends = np.cumsum([share for share, _ in self.laws])
        # A number times the sum may round onto the sum, which belongs to the last law.
        law_TW = np.minimum(
            np.searchsorted(ends, uniform_TWu[..., 0] * ends[-1], side="right"), len(ends) - 1
        )
        drawn = []
        for index, (_, law) in enumerate(self.laws):
            its_TW = law_TW == index
            if its_TW.any():
                uniform_M1u = uniform_TWu[its_TW][:, None, 1 : 1 + law.uniforms(domains)]
                drawn.append((its_TW, *law.draw(domains, number_TW[its_TW][:, None], uniform_M1u)))
        size = max(support.shape[-1] for _, support, _ in drawn)
        if size == len(domains.numbers):
            return self._of_all_domains(drawn, domains, number_TW.shape)
        support_TWs = np.empty((*number_TW.shape, size), np.int64)
        weights_TWs = np.zeros((*number_TW.shape, size))
        for its_TW, support_M1s, weights_M1s in drawn:
            missing = size - support_M1s.shape[-1]
            support_TWs[its_TW] = np.pad(support_M1s[:, 0], ((0, 0), (0, missing)), mode="edge")
            weights_TWs[its_TW, : size - missing] = weights_M1s[:, 0]
        return support_TWs, weights_TWs

    @staticmethod
    def _of_all_domains(
        drawn: list[tuple[np.ndarray, np.ndarray, np.ndarray]], domains: Domains, shape: tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        """For laws of which one has all domains: the numbers of the domains are held once, not once per mixture."""
        shape = (*shape, len(domains.numbers))
        weights_TWn = np.empty(shape)
        for its_TW, support_M1s, weights_M1s in drawn:
            weights_TWn[its_TW] = _spread(support_M1s, weights_M1s, domains).reshape(-1, shape[-1])
        return np.broadcast_to(domains.numbers, shape), weights_TWn


def laws_of(law: MetaDistribution) -> list[MetaDistribution]:
    """The laws that mixtures of this one are drawn from: those of :class:`Mixed`, else itself."""
    if isinstance(law, Mixed):
        return [its for _, one in law.laws for its in laws_of(one)]
    return laws_of(law.law) if isinstance(law, WithGeneric) else [law]


def _spread(support_TWs: np.ndarray, weights_TWs: np.ndarray, domains: Domains) -> np.ndarray:
    """Weights of all domains that are not empty, float64 [M * n]. Padding repeats a domain, at weight zero."""
    n = len(domains.numbers)
    if support_TWs.shape[-1] == n and not any(
        support_TWs.strides[:-1]
    ):  # one array of all domains stands for all
        return weights_TWs.reshape(-1)
    place_Ms = np.searchsorted(domains.numbers, support_TWs).reshape(-1, support_TWs.shape[-1])
    place_Ms = place_Ms + n * np.arange(len(place_Ms))[:, None]
    return np.bincount(place_Ms.ravel(), weights_TWs.ravel(), minlength=n * len(place_Ms))
