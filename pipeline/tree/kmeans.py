"""k-means for one node of the tree: unit vectors, L2, a k-means++ start, a bound on the clusters' sizes.

The recipe is that of arXiv 2510.02375, appendix C, with two differences: every iteration sees the node's whole sample
instead of a small new one, and the last iterations are not bounded, so that clusters that were split at random settle.
FAISS measures the distances; its own k-means cannot bound sizes. Centroids are plain means, not renormalised.

Legend: N vectors, k centroids of one node, D embedding size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.tree.nearest import Blocks, distinct_rows, single_threaded

BOUNDED = 0.75
"""The share of the iterations in which sizes are bounded."""
_INIT_ROWS = 64
"""k-means++ chooses among this many vectors per centroid; more cost time and gain nothing."""
_INIT_TRIALS = 4


@dataclass(frozen=True, kw_only=True)
class KMeansSettings:
    """How each node is fitted; see ``flows/settings/stores.py``."""

    iterations: int = 20
    starts: int = 1
    """How often the fit is made; the one with the smallest inertia is kept."""
    init: Literal["k-means++", "random"] = "k-means++"
    size_limit: float | None = 1.5
    """A cluster larger than this many even shares (N / k) gives a random half to the smallest one. None: no bound."""


@dataclass(frozen=True, kw_only=True)
class NodeFit:
    """A fitted node."""

    centroids_kD: np.ndarray
    """float32; if there are fewer than k distinct vectors, the last rows are NaN."""
    inertia: float
    """Mean squared distance of the sample's vectors to their nearest centroid."""
    splits: int
    """How often a cluster was split because it was too large or another one was empty."""


def fit_node(
    vectors_ND: np.ndarray,
    clusters: int,
    settings: KMeansSettings,
    *,
    seed: int,
    threads: int = 1,
    use_gpu: bool = False,
) -> NodeFit:
    """Fit the centroids of one node.

    Args:
        vectors_ND: finite, float16 or float32; N may be 0.
        threads: they change the time, and no bit of the result.

    Returns:
        The same bytes for the same arguments on the same machine.

    Raises:
        ValueError: a vector is not finite.
    """
    distinct = _distinct_up_to(vectors_ND, clusters)
    if distinct is not None:
        centroids_kD = np.full((clusters, vectors_ND.shape[1]), np.nan, np.float32)
        centroids_kD[: len(distinct)] = vectors_ND[distinct]
        return NodeFit(centroids_kD=centroids_kD, inertia=0.0, splits=0)
    blocks = Blocks(vectors_ND, threads=threads, use_gpu=use_gpu)
    random = np.random.Generator(np.random.Philox(seed))
    fits = [_fit_once(blocks, clusters, settings, random) for _ in range(settings.starts)]
    return min(fits, key=lambda fit: fit.inertia)


def _fit_once(
    blocks: Blocks, clusters: int, settings: KMeansSettings, random: np.random.Generator
) -> NodeFit:
    centroids_kD = _start(blocks.vectors_ND, clusters, settings.init, random)
    limit = len(blocks.vectors_ND) / clusters * (settings.size_limit or clusters)
    before_N, splits = None, 0
    for iteration in range(settings.iterations):
        nearest_N, _ = blocks.nearest(centroids_kD)
        bounded = iteration < BOUNDED * settings.iterations
        splits += _split(nearest_N, clusters, limit if bounded else np.inf, random)
        if before_N is not None and np.array_equal(nearest_N, before_N):
            break
        before_N = nearest_N
        centroids_kD = blocks.means(nearest_N, clusters)
    _, squared_N = blocks.nearest(centroids_kD)
    return NodeFit(centroids_kD=centroids_kD, inertia=float(squared_N.mean(dtype=np.float64)), splits=splits)


def _split(nearest_N: np.ndarray, clusters: int, limit: float, random: np.random.Generator) -> int:
    """Move a random half of each cluster above the limit to the smallest one, and fill empty clusters, in place.

    Returns the number of splits.
    """
    counts_k = np.bincount(nearest_N, minlength=clusters)
    splits = 0
    while (counts_k.max() > limit or counts_k.min() == 0) and splits < clusters:
        largest, smallest = int(counts_k.argmax()), int(counts_k.argmin())
        rows = np.flatnonzero(nearest_N == largest)
        moved = random.permutation(rows)[: len(rows) // 2]
        nearest_N[moved] = smallest
        counts_k[largest] -= len(moved)
        counts_k[smallest] += len(moved)
        splits += 1
    return splits


def _start(vectors_ND: np.ndarray, clusters: int, init: str, random: np.random.Generator) -> np.ndarray:
    """Choose some of the vectors as the first centroids."""
    if init == "random":
        return vectors_ND[random.choice(len(vectors_ND), clusters, replace=False)].astype(np.float32)
    rows = min(len(vectors_ND), _INIT_ROWS * clusters)
    sample_ND = vectors_ND[np.sort(random.choice(len(vectors_ND), rows, replace=False))].astype(np.float32)
    with single_threaded() as pool:
        return sample_ND[pool.submit(_plus_plus, sample_ND, clusters, random).result()]


def _plus_plus(vectors_ND: np.ndarray, clusters: int, random: np.random.Generator) -> list[int]:
    """Greedy k-means++ (Arthur & Vassilvitskii 2007): of a few vectors drawn by their squared distance, take the one
    that leaves the smallest sum of squared distances. Returns the vectors' numbers.
    """
    from faiss import pairwise_distances

    chosen = [int(random.integers(len(vectors_ND)))]
    squared_N = pairwise_distances(vectors_ND, vectors_ND[chosen])[:, 0]
    while len(chosen) < clusters:
        total = np.cumsum(squared_N, dtype=np.float64)
        drawn = np.searchsorted(total, random.random(_INIT_TRIALS) * total[-1], side="right")
        drawn = np.minimum(drawn, len(vectors_ND) - 1)
        left_NT = np.minimum(squared_N[:, None], pairwise_distances(vectors_ND, vectors_ND[drawn]))
        best = int(left_NT.sum(0, dtype=np.float64).argmin())
        chosen.append(int(drawn[best]))
        squared_N = left_NT[:, best]
    return chosen


def _distinct_up_to(vectors_ND: np.ndarray, clusters: int) -> np.ndarray | None:
    """Numbers of the distinct vectors if there are at most `clusters`, else None."""
    if len(distinct_rows(vectors_ND[: 4 * clusters])) > clusters:
        return None
    distinct = distinct_rows(vectors_ND)
    return distinct if len(distinct) <= clusters else None
