"""k-means of unit vectors under L2, and greedy descent.

The tree is fitted from the root: ``coarse_clusters`` centroids on a sample of everything, then
``leaf_clusters`` on a sample of what reaches each coarse node (section 4; the recipe's details are those of
arXiv 2510.02375, appendix C, except that cluster sizes are not bounded while fitting). Centroids are raw
means, not renormalised.

Assignment always is to the nearest centroid; a centroid that no passage reached is a row of NaN and is
never chosen. A node with fewer distinct vectors than children gets one child for each distinct vector.

Legend: N vectors, k centroids of one node, D embedding size.
"""

from __future__ import annotations

import hashlib

import numpy as np

ASSIGN_ROWS = 16_384
STARTS = 4
"""k-means ends in a local minimum; the best of so many is kept, which costs little beside embedding."""


def fit_node(
    vectors_ND: np.ndarray, clusters: int, *, iterations: int, seed: int, use_gpu: bool = False
) -> np.ndarray:
    """Fit the centroids of one node of the tree.

    Args:
        vectors_ND: finite float32, N may be anything from 0.
        clusters: k.

    Returns:
        float32 ``[k, D]``; rows of NaN, last, where there are fewer than k distinct vectors. The same
        arguments give the same bytes on the same machine.
    """
    import faiss

    size = vectors_ND.shape[1]
    distinct = distinct_rows(vectors_ND)
    centroids_kD = np.full((clusters, size), np.nan, np.float32)
    if len(distinct) <= clusters:
        centroids_kD[: len(distinct)] = vectors_ND[distinct]
        return centroids_kD
    kmeans = faiss.Kmeans(
        size,
        clusters,
        niter=iterations,
        nredo=STARTS,
        seed=seed & 0x7FFFFFFF,
        gpu=use_gpu,
        init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
        # The caller has sampled already; FAISS must neither sample again nor warn of few points.
        max_points_per_centroid=len(vectors_ND),
        min_points_per_centroid=1,
    )
    kmeans.train(np.ascontiguousarray(vectors_ND, np.float32))
    return kmeans.centroids.astype(np.float32, copy=False)


def assign(vectors_ND: np.ndarray, centroids_kD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest centroid of each vector, the first of equals.

    Returns:
        int64 ``[N]`` numbers and float32 ``[N]`` L2 distances.

    Raises:
        ValueError: every centroid is NaN.
    """
    finite = np.flatnonzero(np.isfinite(centroids_kD).all(1))
    if not len(finite):
        raise ValueError("No centroid to assign to: the node is empty. Rebuild the domains.")
    reachable = centroids_kD[finite]
    norms = np.square(reachable).sum(1)
    nearest = np.empty(len(vectors_ND), np.int64)
    distance = np.empty(len(vectors_ND), np.float32)
    for start in range(0, len(vectors_ND), ASSIGN_ROWS):
        block = vectors_ND[start : start + ASSIGN_ROWS]
        rows = slice(start, start + len(block))
        chosen = np.argmin(norms - 2 * (block @ reachable.T), axis=1)
        nearest[rows] = finite[chosen]
        distance[rows] = np.linalg.norm(block - reachable[chosen], axis=1)
    return nearest, distance


def without_unreached(centroids_kD: np.ndarray, counts_k: np.ndarray) -> np.ndarray:
    """The centroids, NaN where the count is zero."""
    return np.where(counts_k[:, None] > 0, centroids_kD, np.float32(np.nan))


def distinct_rows(vectors_ND: np.ndarray) -> np.ndarray:
    """Numbers of the first row of each distinct vector, in order."""
    rows = np.ascontiguousarray(vectors_ND)
    if not len(rows):
        return np.empty(0, np.int64)
    as_bytes = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).reshape(-1)
    return np.sort(np.unique(as_bytes, return_index=True)[1])


def sample_rows(total: int, limit: int, seed: int) -> np.ndarray:
    """At most `limit` of the numbers below `total`, drawn without repetition, in order."""
    if total <= limit:
        return np.arange(total)
    return np.sort(np.random.Generator(np.random.Philox(seed)).choice(total, limit, replace=False))


def node_seed(seed: int, node: int) -> int:
    """The seed of one node (-1 is the root), so that nodes can be fitted in any order."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {node}".encode(), digest_size=8).digest(), "little") >> 1


def check_gpu() -> None:
    """Raise ValueError if torch or FAISS sees no GPU here; FAISS would silently use the CPU."""
    import faiss
    import torch

    if not torch.cuda.is_available():
        raise ValueError(
            f"use_gpu is true, but torch {torch.__version__} sees no GPU. Install a CUDA build of torch, "
            "check the driver (nvidia-smi), or set use_gpu=false."
        )
    if faiss.get_num_gpus() == 0:
        raise ValueError(
            f"use_gpu is true, but FAISS {faiss.__version__} sees no GPU. Install the `gpu` extra in "
            "place of `cpu`, check the driver (nvidia-smi), or set use_gpu=false."
        )
