"""Domain weights of a set of texts (Algorithm 3), and what a vector of domain weights must be.

The rule belongs to the weights and is stored with them: the nearest of all leaves (``flat``, Algorithm 3)
and the leaf of the greedy descent (``tree``, which made the domains) are not always the same.

Legend: N texts, K domains, D embedding size.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from pipeline.clustering import assign
from storage_schema.tree import Tree

Rule = Literal["flat", "tree"]
SUM_TOLERANCE = 1e-6


def estimate_domain_weights(vectors_ND: np.ndarray, tree: Tree, *, rule: Rule = "flat") -> np.ndarray:
    """The histogram of the nearest domains (Algorithm 3).

    Args:
        vectors_ND: embeddings of the texts, unit norm.
        rule: ``flat`` or ``tree``.

    Returns:
        float64 ``[K]``, sums to one.

    Raises:
        ValueError: no vectors, vectors of another size or not finite, or an unknown rule.
    """
    domains_N = nearest_domains(vectors_ND, tree, rule=rule)
    return np.bincount(domains_N, minlength=tree.num_domains) / len(domains_N)


def nearest_domains(vectors_ND: np.ndarray, tree: Tree, *, rule: Rule = "flat") -> np.ndarray:
    """The domain of each vector, int64 ``[N]``; arguments and errors as above."""
    vectors_ND = np.asarray(vectors_ND, np.float32)
    size = tree.leaves_KD.shape[1]
    if not len(vectors_ND):
        raise ValueError("The specialist set has zero texts; domain weights need at least one.")
    if vectors_ND.ndim != 2 or vectors_ND.shape[1] != size:
        raise ValueError(
            f"The embeddings have shape {vectors_ND.shape}; the tree's have size {size}. "
            "Use the embedder the store was built with (its embeddings manifest names it)."
        )
    finite = np.isfinite(vectors_ND).all(1)
    if not finite.all():
        raise ValueError(f"The embedding of text {np.argmin(finite)} is not finite. Remove the text.")
    if rule == "flat":
        return assign(vectors_ND, tree.leaves_KD)[0]
    if rule == "tree":
        return _descend(vectors_ND, tree)
    raise ValueError(f"rule is {rule!r}; it must be 'flat' (Algorithm 3) or 'tree' (greedy descent).")


def check_domain_weights(domain_weights_K: np.ndarray, num_domains: int) -> np.ndarray:
    """Return the weights as float64 ``[K]`` if they are a distribution over `num_domains` domains.

    Raises:
        ValueError: a wrong shape, NaN, a negative weight, or a sum further than 1e-6 from one.
    """
    weights = np.asarray(domain_weights_K, np.float64)
    if weights.shape != (num_domains,):
        raise ValueError(f"domain weights have shape {weights.shape}; the soup has {num_domains} domains.")
    if not np.isfinite(weights).all():
        at = int(np.argmin(np.isfinite(weights)))
        raise ValueError(f"domain weight {at} is {weights[at]}; weights must be finite.")
    if (weights < 0).any():
        at = int(np.argmin(weights))
        raise ValueError(f"domain weight {at} is {weights[at]}; weights must be at least 0.")
    if abs(weights.sum() - 1) > SUM_TOLERANCE:
        raise ValueError(
            f"domain weights sum to {weights.sum():.9g}; they must sum to 1 within {SUM_TOLERANCE}. "
            "Divide them by their sum."
        )
    return weights


def _descend(vectors_ND: np.ndarray, tree: Tree) -> np.ndarray:
    branching = tree.num_domains // len(tree.coarse_CD)
    coarse_N = assign(vectors_ND, tree.coarse_CD)[0]
    domains_N = np.empty_like(coarse_N)
    for node in np.unique(coarse_N):
        rows, first = coarse_N == node, node * branching
        domains_N[rows] = first + assign(vectors_ND[rows], tree.leaves_KD[first : first + branching])[0]
    return domains_N
