"""The tree of centroids in ``tree.arrow``: first the coarse nodes, then the leaves (= domains).

Legend: K domains, C coarse nodes, D embedding size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from storage_schema.arrow_files import check_schema, read_arrow
from storage_schema.manifest import StoreError

_NAME = "a tree of centroids"
SEARCHED = b"searched_nodes"
"""The name of :attr:`Tree.searched_nodes` in the file's metadata."""


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
    searched_nodes: int = 1
    """Passages fall into the nearest leaf of so many nearest coarse nodes; 1, as in files that say nothing: of the
    nearest one."""

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
        table = table.replace_schema_metadata({SEARCHED: str(self.searched_nodes)})
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)

    @classmethod
    def read(cls, path: str | Path) -> Tree:
        """Read ``tree.arrow``. Raises :class:`StoreError` if it is missing or not one."""
        table = read_arrow(path, what=_NAME)
        found = table.schema.field("centroid").type if "centroid" in table.schema.names else None
        size = found.list_size if isinstance(found, pa.FixedSizeListType) else 1
        check_schema(table.schema, _schema(size), path, what=_NAME)
        level = table["level"].to_numpy()
        c, k = int((level == 0).sum()), int((level == 1).sum())
        if not c or not k or k % c or size < 1 or not np.array_equal(level, np.repeat([0, 1], [c, k])):
            raise StoreError(f"{path} is not {_NAME}: {c} coarse nodes and {k} leaves. Rebuild the store.")
        centroids = np.array(table["centroid"].combine_chunks().flatten()).reshape(len(table), size)
        counts_K = np.array(table["count"])[c:]
        if (counts_K < 0).any() or np.isinf(centroids).any():
            raise StoreError(f"{path} is not {_NAME}: a count is negative, or a centroid infinite.")
        searched = (table.schema.metadata or {}).get(SEARCHED, b"1")
        if not searched.isdigit() or not 1 <= len(searched) <= 4 or int(searched) < 1:
            raise StoreError(f"{path} is not {_NAME}: it says that {searched!r} nodes are searched.")
        return cls(
            coarse_CD=centroids[:c],
            leaves_KD=centroids[c:],
            counts_K=counts_K,
            mean_distance_K=np.array(table["mean_distance"])[c:],
            searched_nodes=int(searched),
        )


def _schema(size: int) -> pa.Schema:
    fields = {"level": pa.int8(), "node": pa.int32(), "parent": pa.int32()}
    fields |= {"centroid": pa.list_(pa.float32(), size), "count": pa.int64(), "mean_distance": pa.float32()}
    return pa.schema(list(fields.items()))


def with_additions(trees: Sequence[Tree]) -> Tree:
    """Combine trees of the same centroids: counts are added, and mean distances averaged by the counts."""
    if len(trees) == 1:
        return trees[0]
    counts_K = np.sum([tree.counts_K for tree in trees], axis=0)
    distance_K = sum(tree.counts_K * tree.mean_distance_K.astype(np.float64) for tree in trees)
    return replace(
        trees[0],
        counts_K=counts_K,
        mean_distance_K=(distance_K / np.maximum(counts_K, 1)).astype(np.float32),
    )
