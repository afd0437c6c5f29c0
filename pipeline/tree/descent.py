"""From the coarse nodes down to a leaf: the domain of a vector.

The leaves of the few nearest coarse nodes are compared, and the nearest of them is taken. With one node this is greedy
descent (arXiv 2510.02375, appendix C), which misses the nearest leaf of all where it lies behind a border; with all
nodes it is Algorithm 3's nearest centroid, at the cost of comparing with every leaf.

Legend: N vectors, K leaves (= domains), C coarse nodes, D embedding size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.tree.nearest import Blocks
from storage_schema.errors import UserError
from storage_schema.tree import Tree


@dataclass(frozen=True, kw_only=True)
class Descent:
    """Where vectors fall."""

    domains_N: np.ndarray
    """int64."""
    distances_N: np.ndarray
    """float32; L2 to the domain's centroid."""
    coarse_squared_N: np.ndarray
    """float32; the squared distance to the nearest coarse centroid."""


def descend(vectors_ND: np.ndarray, tree: Tree, *, threads: int = 1) -> Descent:
    """The nearest leaf among those of the ``tree.searched_nodes`` nearest coarse nodes.

    Args:
        vectors_ND: finite, float16 or float32.
        tree: its counts are not used. Coarse nodes and leaves that are NaN are never chosen.

    Raises:
        ValueError: no leaf is left to choose, or a vector is not finite.
    """
    leaves_CkD = tree.leaves_KD.reshape(len(tree.coarse_CD), -1, tree.leaves_KD.shape[1])
    there_Ck = np.isfinite(leaves_CkD).all(2)
    nodes = np.flatnonzero(np.isfinite(tree.coarse_CD).all(1) & there_Ck.any(1))
    if not len(nodes):
        raise UserError("No centroid to assign to: the tree is empty. Rebuild the domains.")
    blocks = Blocks(vectors_ND, threads=threads)
    searched = min(tree.searched_nodes, len(nodes))
    near_Ns, squared_Ns = blocks.nearest_few(tree.coarse_CD[nodes], searched)
    domains_N = np.full(len(vectors_ND), -1, np.int64)
    best_N = np.full(len(vectors_ND), np.inf, np.float32)
    for number, node in enumerate(nodes):
        rows = np.flatnonzero((near_Ns == number).any(1))
        leaves = np.flatnonzero(there_Ck[node])
        nearest, squared = Blocks(vectors_ND[rows], threads=threads).nearest(leaves_CkD[node, leaves])
        closer = squared < best_N[rows]
        best_N[rows[closer]] = squared[closer]
        domains_N[rows[closer]] = node * there_Ck.shape[1] + leaves[nearest[closer]]
    return Descent(
        domains_N=domains_N,
        distances_N=blocks.distances(domains_N, tree.leaves_KD),
        coarse_squared_N=squared_Ns[:, 0],
    )
