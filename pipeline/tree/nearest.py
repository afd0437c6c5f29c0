"""Finding nearest centroids, both to fit the tree and to assign passages to it.

A vector is always assigned to the nearest centroid under L2. A centroid that no passage reached is a row of NaN and is
never chosen. FAISS compares block by block, each block in one thread, so the result does not depend on the number of
threads.

Legend: N vectors, k centroids of one node, D embedding size.
"""

from __future__ import annotations

import hashlib
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from storage_schema.errors import UserError

ROWS_AT_ONCE = 2048
"""A block of this many rows in float32 (3 MB at D = 384) stays in the cache while it is widened, compared and added."""
GPU_ROWS_AT_ONCE = 65_536
_TORCH_GRAIN = 32_768
"""Up to this many elements torch stays in the calling thread; its own threads would compete with ours."""


class Blocks:
    """Vectors ``[N, D]``, float16 or float32, processed block by block in float32 and never widened as a whole.

    Args:
        threads: how many blocks are worked on at once.
        use_gpu: let FAISS compare on the first GPU it sees.
    """

    def __init__(self, vectors_ND: np.ndarray, *, threads: int = 1, use_gpu: bool = False):
        self.vectors_ND = vectors_ND
        self._threads = 1 if use_gpu else threads
        self._rows = GPU_ROWS_AT_ONCE if use_gpu else ROWS_AT_ONCE
        self._search = _gpu_search() if use_gpu else _search
        self._own = threading.local()

    def nearest(self, centroids_kD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The nearest centroid of each vector, int64 ``[N]``, and its squared distance, float32 ``[N]``.

        All centroids must be finite. Raises ValueError if a vector is not finite.
        """
        nearest_N1, squared_N1 = self.nearest_few(centroids_kD, 1)
        return nearest_N1[:, 0], squared_N1[:, 0]

    def nearest_few(self, centroids_kD: np.ndarray, few: int) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`nearest`, of the `few` nearest centroids: ``[N, few]`` each, the nearest first."""
        nearest_Nf = np.empty((len(self.vectors_ND), few), np.int64)
        squared_Nf = np.empty((len(self.vectors_ND), few), np.float32)
        centroids_kD = np.ascontiguousarray(centroids_kD, np.float32)

        def compare(start: int, block: np.ndarray) -> None:
            squared, nearest = self._search(block, centroids_kD, few)
            nearest_Nf[start : start + len(block)] = nearest
            squared_Nf[start : start + len(block)] = squared

        self._walk(compare)
        broken_N = (nearest_Nf < 0).any(1) | ~np.isfinite(squared_Nf).all(1)
        if broken_N.any():
            raise UserError(f"Vector {int(np.argmax(broken_N))} is not finite: it has no nearest centroid.")
        return nearest_Nf, squared_Nf

    def means(self, nearest_N: np.ndarray, clusters: int) -> np.ndarray:
        """The mean of each cluster's vectors, float32 ``[k, D]``; NaN for an empty cluster."""
        from scipy.sparse import csr_array

        def add(start: int, block: np.ndarray) -> np.ndarray:
            rows = nearest_N[start : start + len(block)]
            counts = np.bincount(rows, minlength=clusters)
            members = np.ones(len(block), np.float32), np.argsort(rows, kind="stable")
            return csr_array((*members, np.append(0, np.cumsum(counts))), (clusters, len(block))) @ block

        total_kD = np.zeros((clusters, self.vectors_ND.shape[1]), np.float64)
        for sums_kD in self._walk(add):
            total_kD += sums_kD
        counts_k = np.bincount(nearest_N, minlength=clusters)
        with np.errstate(invalid="ignore"):
            return (total_kD / counts_k[:, None]).astype(np.float32)

    def distances(self, nearest_N: np.ndarray, centroids_kD: np.ndarray) -> np.ndarray:
        """The L2 distance of each vector to its centroid, float32 ``[N]``. It is computed from the difference, and so
        is exact near 0.
        """

        def measure(start: int, block: np.ndarray) -> np.ndarray:
            difference = block - centroids_kD[nearest_N[start : start + len(block)]]
            return np.sqrt(np.einsum("nd,nd->n", difference, difference))

        return np.concatenate([np.empty(0, np.float32), *self._walk(measure)])

    def _walk(self, function: Callable[[int, np.ndarray], Any]) -> list[Any]:
        """Call ``function(start, block)`` on every block; the results in order."""
        starts = range(0, len(self.vectors_ND), self._rows)
        with single_threaded(self._threads) as pool:
            return list(pool.map(lambda start: function(start, self._block(start)), starts))

    def _block(self, start: int) -> np.ndarray:
        rows = self.vectors_ND[start : start + self._rows]
        if rows.dtype == np.float32:
            return np.ascontiguousarray(rows)
        import torch  # it widens float16 ten times as fast as NumPy

        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # it is only read
        step = max(1, _TORCH_GRAIN // rows.shape[1])
        if not hasattr(self._own, "buffer"):
            self._own.buffer = np.empty((self._rows, rows.shape[1]), np.float32)
        block = self._own.buffer[: len(rows)]
        for first in range(0, len(rows), step):
            torch.from_numpy(block[first : first + step]).copy_(torch.from_numpy(rows[first : first + step]))
        return block


def assign(
    vectors_ND: np.ndarray, centroids_kD: np.ndarray, *, threads: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest centroid of each vector.

    Args:
        vectors_ND: finite, float16 or float32.
        centroids_kD: float32; rows of NaN are never chosen.

    Returns:
        int64 ``[N]`` numbers and float32 ``[N]`` L2 distances.

    Raises:
        ValueError: every centroid is NaN, or a vector is not finite.
    """
    reachable = np.flatnonzero(np.isfinite(centroids_kD).all(1))
    if not len(reachable):
        raise UserError("No centroid to assign to: the node is empty. Rebuild the domains.")
    blocks = Blocks(vectors_ND, threads=threads)
    nearest_N = reachable[blocks.nearest(centroids_kD[reachable])[0]]
    return nearest_N, blocks.distances(nearest_N, centroids_kD)


def without_unreached(centroids_kD: np.ndarray, counts_k: np.ndarray) -> np.ndarray:
    """The centroids, NaN where the count is zero."""
    return np.where(counts_k[:, None] > 0, centroids_kD, np.float32(np.nan))


def distinct_rows(vectors_ND: np.ndarray) -> np.ndarray:
    """The number of the first row of each distinct vector, in ascending order."""
    rows = np.ascontiguousarray(vectors_ND)
    if not len(rows):
        return np.empty(0, np.int64)
    as_bytes = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).reshape(-1)
    return np.sort(np.unique(as_bytes, return_index=True)[1])


def sample_rows(total: int, limit: int, seed: int) -> np.ndarray:
    """At most `limit` of the numbers below `total`, drawn without repetition, in ascending order."""
    if total <= limit:
        return np.arange(total)
    random = np.random.Generator(np.random.Philox(seed))
    # This needs memory in proportion to `limit`, not to `total`.
    return np.sort(random.choice(total, limit, replace=False, shuffle=False))


def node_seed(seed: int, node: int) -> int:
    """The seed of one node (-1 is the root, lower numbers are the parts of a sample). Each has its own, so that they
    can be done in any order.
    """
    return int.from_bytes(hashlib.blake2b(f"{seed} {node}".encode(), digest_size=8).digest(), "little") >> 1


def check_gpu() -> None:
    """Raise ValueError if torch or FAISS sees no GPU here; FAISS would silently use the CPU."""
    import faiss
    import torch

    if not torch.cuda.is_available():
        raise UserError(
            f"use_gpu is true, but torch {torch.__version__} sees no GPU. Install a CUDA build of torch, "
            "check the driver (nvidia-smi), or set use_gpu=false."
        )
    if faiss.get_num_gpus() == 0:
        raise UserError(
            f"use_gpu is true, but FAISS {faiss.__version__} sees no GPU. Install the `gpu` extra in "
            "place of `cpu`, check the driver (nvidia-smi), or set use_gpu=false."
        )


def single_threaded(workers: int = 1) -> ThreadPoolExecutor:
    """A pool of threads in which FAISS starts no threads of its own: how it divides work would change last bits."""
    import faiss

    return ThreadPoolExecutor(workers, initializer=faiss.omp_set_num_threads, initargs=(1,))


def _search(block: np.ndarray, centroids_kD: np.ndarray, few: int) -> tuple[np.ndarray, np.ndarray]:
    import faiss

    return faiss.knn(block, centroids_kD, few)


def _gpu_search() -> Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]:
    import faiss

    resources = faiss.StandardGpuResources()
    return lambda block, centroids_kD, few: faiss.knn_gpu(resources, block, centroids_kD, few)
