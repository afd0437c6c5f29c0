"""π, the meta-distribution: the law that each mixture of domains is drawn from (section 2.4).

A law turns uniform numbers into the domains of a mixture and their weights, by our own arithmetic. The plan makes the
uniform numbers from the raw bits of a counter-based generator. Mixture number t*W + w is mixture w of step t.

Legend: T steps, W mixtures per step, s domains in a mixture, K domains of the store.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pipeline.mixtures.supports import Domains, check_support, check_weights, draw_support, normalised
from storage_schema.errors import UserError

TINY = 1e-30
"""If all gamma variates of a mixture are smaller, float32 has lost their bits or made them zero."""


class MetaDistribution(Protocol):
    """A law of mixtures. Its ``description`` goes into the plan's digest."""

    @property
    def description(self) -> dict[str, Any]: ...

    def check(self, domains: Domains) -> None:
        """Raise ValueError if mixtures of these domains cannot be drawn."""

    def uniforms(self, domains: Domains) -> int:
        """How many uniform numbers one mixture takes."""

    def draw(
        self, domains: Domains, number_TW: np.ndarray, uniform_TWu: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The mixtures of these numbers, int64 [T, W]: domains int64 [T, W, s] and weights float64 [T, W, s].

        A mixture of fewer than s domains is padded with its last domain, at weight zero.
        """


@dataclass(frozen=True, kw_only=True)
class Sparse:
    """The paper's law: `support_size` distinct domains, then uniform weights on them, normalised.

    With all domains as the support this is the uniform law of section 2.4.
    """

    support_size: int = 4
    by_size: bool = False
    """Draw each domain with a chance in proportion to its windows, instead of all domains alike.

    In the average mixture a domain then has nearly its share of the windows if that is well below 1/support_size, about
    a third less than its share at 1/support_size, and never more than that: domains are distinct and weighed alike.
    """

    @property
    def description(self) -> dict[str, Any]:
        return {"law": "sparse", "support_size": self.support_size, "by_size": self.by_size}

    def check(self, domains: Domains) -> None:
        check_support(self.support_size, domains)

    def uniforms(self, domains: Domains) -> int:
        return 2 * self.support_size

    def draw(
        self, domains: Domains, number_TW: np.ndarray, uniform_TWu: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        for_support, for_weights = np.split(uniform_TWu, 2, axis=-1)
        return draw_support(for_support, domains, by_size=self.by_size), normalised(for_weights)


@dataclass(frozen=True, kw_only=True)
class Dirichlet:
    """Dirichlet weights, on all domains or on `support_size` distinct ones drawn as :class:`Sparse` draws them.

    Gamma variates come from the inverse of their distribution function, rounded to float32. If another release of the
    library computes the last bit differently, that seldom changes a batch (about once in 10^8 variates, when the value
    lies at the border between two float32). A record of the mixtures (law ``recorded``) never changes.
    """

    concentration: float = 1.0
    """The concentration of each domain, on average. Smaller means sparser mixtures."""
    support_size: int | None = None
    """None for all domains."""
    by_size: bool = False
    """Make concentrations proportional to the domains' windows: mixtures then vary around the generic one."""

    def __post_init__(self) -> None:
        if not 1e-3 <= self.concentration <= 1e6:
            raise UserError(f"concentration is {self.concentration}; it must be between 0.001 and 1000000.")

    @property
    def description(self) -> dict[str, Any]:
        return {"law": "dirichlet", **self.__dict__}

    def check(self, domains: Domains) -> None:
        check_support(self._size(domains), domains)

    def uniforms(self, domains: Domains) -> int:
        return 2 * self._size(domains)

    def draw(
        self, domains: Domains, number_TW: np.ndarray, uniform_TWu: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        from scipy.special import gammaincinv

        for_support, for_weights = np.split(uniform_TWu, 2, axis=-1)
        support_TWs = draw_support(for_support, domains, by_size=False)
        shape = np.float64(self.concentration)
        if self.by_size:
            shape = shape * domains.windows_K[support_TWs] / domains.sizes.mean()
        gammas = gammaincinv(shape, for_weights).astype(np.float32).astype(np.float64)
        tiny_TW = gammas.max(-1) < TINY
        if tiny_TW.any():
            gammas[tiny_TW] = _tiny_gammas(
                np.broadcast_to(shape, gammas.shape)[tiny_TW], for_weights[tiny_TW]
            )
        return support_TWs, normalised(gammas)

    def _size(self, domains: Domains) -> int:
        return len(domains.numbers) if self.support_size is None else self.support_size


def _tiny_gammas(shape: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Gamma variates that are too small for floating point, divided by the largest of the last axis.

    For a small x the distribution function is x^a / Gamma(a + 1), so its inverse is computed in logarithms.
    """
    from scipy.special import gammaln

    logs = (np.log(np.maximum(uniform, 2.0**-64)) + gammaln(1 + shape)) / shape
    return np.exp(logs - logs.max(-1, keepdims=True)).astype(np.float32).astype(np.float64)


@dataclass(frozen=True, eq=False)
class Fixed:
    """The same domain weights in every step: the generic mixture's for generic pretraining, a specialist set's for
    CRISP.
    """

    weights_K: np.ndarray
    """float64; one per domain of the store."""
    name: str = "the domain weights"
    """What they are, in the words of an error."""

    def __post_init__(self) -> None:
        try:
            weights_K = np.asarray(self.weights_K)
            object.__setattr__(self, "weights_K", weights_K.astype(np.float64, casting="same_kind"))
        except (TypeError, ValueError) as error:
            raise UserError(f"domain weights must be real numbers, one for each domain: {error}") from error

    @property
    def description(self) -> dict[str, Any]:
        return {"law": "fixed", "weights": [float(weight) for weight in self.weights_K]}

    def check(self, domains: Domains) -> None:
        if np.shape(self.weights_K) != domains.windows_K.shape:
            raise UserError(
                f"{len(self.weights_K)} domain weights for {len(domains.windows_K)} domains: give one for each."
            )
        check_weights(np.arange(len(self.weights_K)), self.weights_K, domains, what=self.name)

    def uniforms(self, domains: Domains) -> int:
        return 0

    def draw(
        self, domains: Domains, number_TW: np.ndarray, uniform_TWu: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        support = np.flatnonzero(self.weights_K)
        shape = (*number_TW.shape, len(support))
        weights = np.asarray(self.weights_K, np.float64)[support]
        return np.broadcast_to(support, shape), np.broadcast_to(weights, shape)


@dataclass(frozen=True, eq=False)
class Given:
    """Mixtures given by a pure function: number of the mixture → (domains, weights).

    A run resumes from its step alone, so the function must give the same mixture for the same number on every worker.
    `name` stands for the function in the plan's digest, so another function needs another name. If the function has a
    method ``check(domains)``, it is called before the run begins and may raise ValueError.
    """

    function: Callable[[int], tuple[np.ndarray, np.ndarray]]
    name: str

    @property
    def description(self) -> dict[str, Any]:
        return {"law": "given", "name": self.name}

    def check(self, domains: Domains) -> None:
        """Call the function's own check, if it has one. Each mixture is checked when it is drawn."""
        if (check := getattr(self.function, "check", None)) is not None:
            check(domains)

    def uniforms(self, domains: Domains) -> int:
        return 0

    def draw(
        self, domains: Domains, number_TW: np.ndarray, uniform_TWu: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        mixtures = [self._mixture(number, domains) for number in number_TW.ravel().tolist()]
        size = max(len(support) for support, _ in mixtures)
        support_TWs = np.stack([np.pad(s, (0, size - len(s)), mode="edge") for s, _ in mixtures])
        weights_TWs = np.stack([np.pad(w, (0, size - len(w))) for _, w in mixtures])
        shape = (*number_TW.shape, size)
        return support_TWs.reshape(shape), weights_TWs.reshape(shape)

    def _mixture(self, number: int, domains: Domains) -> tuple[np.ndarray, np.ndarray]:
        support, weights = (np.asarray(array) for array in self.function(number))
        check_weights(support, weights, domains, what=f"mixture {number} of {self.name}")
        used = np.flatnonzero(weights)
        used = used[np.argsort(support[used])]
        return support[used].astype(np.int64), weights[used].astype(np.float64)


def window_shares(windows_K: np.ndarray) -> np.ndarray:
    """The generic mixture, float64 [K]: every window is equally likely, so a domain's weight is its share of windows.

    Raises ValueError if no domain has a window.
    """
    windows_K = np.asarray(windows_K)
    if not windows_K.sum():
        raise UserError("every domain is empty at this sequence length; use a shorter one or more text.")
    return windows_K / windows_K.sum()


def on_windows(weights_K: np.ndarray, windows_K: np.ndarray) -> np.ndarray:
    """The same weights on the domains that have a window, float64 [K], sum 1; what the others had is shared out.

    Where no domain of the weights has a window, these are the shares of :func:`window_shares`.
    """
    kept_K = np.where(np.asarray(windows_K) > 0, np.asarray(weights_K, np.float64), 0.0)
    return kept_K / kept_K.sum() if kept_K.sum() else window_shares(windows_K)
