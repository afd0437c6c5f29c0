"""Domain weights of a set of texts (Algorithm 3), and what a vector of domain weights must be.

The rule belongs to the weights and is stored with them: the nearest of all leaves (``flat``, Algorithm 3)
and the leaf of the descent (``tree``, which made the domains) are not always the same.

Legend: N texts, K domains, D embedding size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pipeline.embeddings.build import embed_texts
from pipeline.tree.descent import descend
from pipeline.tree.nearest import Blocks, assign
from storage_schema.errors import UserError
from storage_schema.tree import Tree

Rule = Literal["flat", "tree"]
SUM_TOLERANCE = 1e-6
FEW = 30
"""Texts below which a warning says that they are few."""
FAR, SPREAD = 0.05, 0.07
"""Texts count as far when their mean distance is beyond that of training passages by this share of it, and by two
standard errors of a mean of so few (single training passages spread by 0.07 of their domain's mean)."""
NO_TEXTS = "The specialist set has zero texts; domain weights need at least one."


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Where texts fall among the domains."""

    domains_N: np.ndarray
    """int64; the domain of each text."""
    distances_N: np.ndarray
    """float32; L2 of each text to that domain's centroid, 0 to 2."""
    num_domains: int
    training_distance: float
    """Mean distance of the training passages of those domains to their centroids, as often as the texts fall there."""

    @property
    def domain_weights(self) -> np.ndarray:
        """The histogram (Algorithm 3): float64 ``[K]``, sums to one."""
        return self.weights_of(np.ones(len(self.domains_N), bool))

    def weights_of(self, chosen_N: np.ndarray) -> np.ndarray:
        """The histogram of the texts that are chosen (bool), at least one: float64 ``[K]``, sums to one."""
        chosen = self.domains_N[chosen_N]
        return np.bincount(chosen, minlength=self.num_domains) / len(chosen)

    @property
    def heaviest_domain(self) -> np.ndarray:
        """Domain weights of the one domain that most of the texts fall into: float64 ``[K]``."""
        return (np.arange(self.num_domains) == self.domain_weights.argmax()).astype(np.float64)

    def resampled(self, resamples: int, *, seed: int = 0) -> np.ndarray:
        """Bootstrap: the histograms of as many texts drawn with replacement, float64 ``[resamples, K]``."""
        random = np.random.default_rng(seed)
        drawn_bN = random.integers(len(self.domains_N), size=(resamples, len(self.domains_N)))
        rows = [np.bincount(self.domains_N[drawn], minlength=self.num_domains) for drawn in drawn_bN]
        return np.stack(rows) / len(self.domains_N)

    def describe(self) -> dict[str, Any]:
        """How sure the weights are: texts, domains, entropy in nats, distances, texts in each domain, and warnings in
        words.
        """
        weights = self.domain_weights[self.domain_weights > 0]
        domains, texts = np.unique(self.domains_N, return_counts=True)
        distance = float(self.distances_N.mean())
        found = {
            "count": len(self.domains_N),
            "domains": len(weights),
            "entropy": abs(float((weights * np.log(weights)).sum())),
            "distance": round(distance, 4),
            "training_distance": round(self.training_distance, 4),
            "in_domains": dict(zip(map(str, domains.tolist()), texts.tolist(), strict=True)),
        }
        warnings = []
        beyond = max(FAR, 2 * SPREAD / len(self.domains_N) ** 0.5)
        if distance > (1 + beyond) * self.training_distance:
            warnings.append(
                f"The texts are far from every domain: {distance:.3f} on average from the nearest centroid, where "
                f"training passages are {self.training_distance:.3f} from theirs. The corpus may have little like them."
            )
        if len(self.domains_N) < FEW:
            some = "one text" if len(self.domains_N) == 1 else f"{len(self.domains_N)} texts"
            warnings.append(
                f"Only {some} chose the domain weights: others of the same kind may give another model."
            )
        return found | ({"warnings": warnings} if warnings else {})


def estimate_domain_weights(
    texts: Sequence[str], tree: Tree, embedder: Any, *, rule: Rule = "flat"
) -> np.ndarray:
    """Algorithm 3: embed the texts and count the nearest domains.

    Args:
        embedder: the store's, from :func:`pipeline.embeddings.embedder.load_embedder`.
        rule: ``flat`` or ``tree``.

    Returns:
        float64 ``[K]``, sums to one.

    Raises:
        ValueError: no texts, a text without an embedding, an embedder of another size, or an unknown rule.
    """
    if not len(texts):
        raise UserError(NO_TEXTS)
    return assign_to_domains(embed_texts(embedder, texts), tree, rule=rule).domain_weights


def assign_to_domains(vectors_ND: np.ndarray, tree: Tree, *, rule: Rule = "flat") -> Assignment:
    """Where texts fall, by their embeddings (unit norm). Errors as :func:`nearest_domains`."""
    domains_N = nearest_domains(vectors_ND, tree, rule=rule)
    vectors_ND = np.asarray(vectors_ND, np.float32)
    return Assignment(
        domains_N=domains_N,
        distances_N=Blocks(vectors_ND).distances(domains_N, tree.leaves_KD),
        num_domains=tree.num_domains,
        training_distance=float(tree.mean_distance_K[domains_N].mean()),
    )


def nearest_domains(vectors_ND: np.ndarray, tree: Tree, *, rule: Rule = "flat") -> np.ndarray:
    """The domain of each vector (unit norm), int64 ``[N]``.

    Raises:
        ValueError: no vectors, vectors of another size or not finite, or an unknown rule.
    """
    vectors_ND = np.asarray(vectors_ND, np.float32)
    size = tree.leaves_KD.shape[1]
    if not len(vectors_ND):
        raise UserError(NO_TEXTS)
    if vectors_ND.ndim != 2 or vectors_ND.shape[1] != size:
        raise UserError(
            f"The embeddings have shape {vectors_ND.shape}; the tree's have size {size}. "
            "Use the embedder the store was built with (its embeddings manifest names it)."
        )
    finite = np.isfinite(vectors_ND).all(1)
    if not finite.all():
        raise UserError(f"The embedding of text {np.argmin(finite)} is not finite. Remove the text.")
    if rule == "flat":
        return assign(vectors_ND, tree.leaves_KD)[0]
    if rule == "tree":
        return descend(vectors_ND, tree).domains_N
    raise UserError(f"rule is {rule!r}; it must be 'flat' (Algorithm 3) or 'tree' (the store's descent).")


def check_domain_weights(domain_weights_K: np.ndarray, num_domains: int) -> np.ndarray:
    """Return the weights as float64 ``[K]`` if they are a distribution over `num_domains` domains.

    Raises:
        ValueError: a wrong shape, NaN, a negative weight, or a sum further than 1e-6 from one.
    """
    weights = np.asarray(domain_weights_K, np.float64)
    if weights.shape != (num_domains,):
        raise UserError(f"domain weights have shape {weights.shape}; the soup has {num_domains} domains.")
    if not np.isfinite(weights).all():
        at = int(np.argmin(np.isfinite(weights)))
        raise UserError(f"domain weight {at} is {weights[at]}; weights must be finite.")
    if (weights < 0).any():
        at = int(np.argmin(weights))
        raise UserError(f"domain weight {at} is {weights[at]}; weights must be at least 0.")
    if abs(weights.sum() - 1) > SUM_TOLERANCE:
        raise UserError(
            f"domain weights sum to {weights.sum():.9g}; they must sum to 1 within {SUM_TOLERANCE}. "
            "Divide them by their sum."
        )
    return weights
