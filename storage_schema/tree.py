"""The tree of centroids, as it lies in ``tree.arrow``: coarse nodes, then leaves (= domains).

Legend: K domains, C coarse nodes, D embedding size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from storage_schema.manifest import StoreError


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A two-level tree of centroids. Leaf ``i`` is domain ``i``; its coarse node is ``i // (K // C)``."""

    coarse_CD: np.ndarray
    """float32; the coarse centroids. A coarse node that no training passage reached is a row of NaN."""
    leaves_KD: np.ndarray
    """float32; the domains' centroids. A leaf that no training passage reached is a row of NaN."""
    counts_K: np.ndarray
    """int64; passages assigned to each leaf."""
    mean_distance_K: np.ndarray
    """float32; mean distance of a leaf's passages to its centroid, 0 for an empty leaf."""

    @property
    def num_domains(self) -> int:
        return len(self.leaves_KD)

    @property
    def generic_weights(self) -> np.ndarray:
        """float64[K]: the corpus's own histogram over its domains (Algorithm 3 applied to all of it)."""
        return self.counts_K / self.counts_K.sum()

    @property
    def imbalance(self) -> float:
        """K Σ p_i² over leaf shares p: 1 for equal leaves, K if one holds everything (FAISS's factor)."""
        total = self.counts_K.sum()
        return float(self.num_domains * np.square(self.counts_K / max(total, 1)).sum())

    def write(self, path: str | Path) -> None:
        c, k = len(self.coarse_CD), self.num_domains
        centroids = np.concatenate([self.coarse_CD, self.leaves_KD]).astype(np.float32)
        branching = k // c
        table = pa.table(
            {
                "level": pa.array([0] * c + [1] * k, pa.int8()),
                "node": pa.array([*range(c), *range(k)], pa.int32()),
                "parent": pa.array([-1] * c + [i // branching for i in range(k)], pa.int32()),
                "centroid": pa.FixedSizeListArray.from_arrays(
                    pa.array(centroids.reshape(-1), pa.float32()), centroids.shape[1]
                ),
                "count": pa.array(
                    [*self.counts_K.reshape(c, branching).sum(1).tolist(), *self.counts_K.tolist()],
                    pa.int64(),
                ),
                "mean_distance": pa.array([0.0] * c + self.mean_distance_K.tolist(), pa.float32()),
            }
        )
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)

    @classmethod
    def read(cls, path: str | Path) -> Tree:
        """Read ``tree.arrow``. Raises :class:`StoreError` if it is missing or not one."""
        try:
            with pa.memory_map(str(path)) as source:
                table = pa.ipc.open_file(source).read_all()
            column = table["centroid"].combine_chunks()
            centroids = np.array(column.flatten()).reshape(len(table), column.type.list_size)
            is_leaf = np.array(table["level"]) == 1
            return cls(
                coarse_CD=centroids[~is_leaf],
                leaves_KD=centroids[is_leaf],
                counts_K=np.array(table["count"])[is_leaf],
                mean_distance_K=np.array(table["mean_distance"])[is_leaf],
            )
        except (OSError, KeyError, AttributeError, pa.ArrowInvalid) as error:
            raise StoreError(f"{path} is not a tree of centroids: {error}") from error


def with_additions(trees: Sequence[Tree]) -> Tree:
    """One tree with the counts and mean distances of all, which are the same centroids' (the first's)."""
    if len(trees) == 1:
        return trees[0]
    counts_K = np.sum([tree.counts_K for tree in trees], axis=0)
    distance_K = sum(tree.counts_K * tree.mean_distance_K.astype(np.float64) for tree in trees)
    return replace(
        trees[0],
        counts_K=counts_K,
        mean_distance_K=(distance_K / np.maximum(counts_K, 1)).astype(np.float32),
    )
