"""The tree of centroids and the domain partitions.

    <store>/domains/tree.arrow                     coarse nodes, then leaves (= domains)
    <store>/domains/index.arrow                    one row a domain: passages, tokens
    <store>/domains/domain=0042/part-00000.arrow   one record batch, uncompressed; absent if empty

The child buffer of a partition's ``tokens`` column *is* the domain's packed token stream: window r of
length L is ``values[r*L : r*L + L + 1]`` (the last token of one window is the first of the next, because
inputs and targets are shifted by one). The incomplete window at the end is never sampled.

Legend: K domains, C coarse nodes, D embedding size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from storage_schema.manifest import Manifest, StoreError, read_manifest

TOKEN_TYPES = {2: pa.uint16(), 4: pa.uint32()}
INDEX = pa.schema([("domain", pa.int32()), ("passages", pa.int64()), ("tokens", pa.int64())])


def partition_schema(vocab_size: int) -> pa.Schema:
    """Schema of a domain partition; tokens are uint16 where the vocabulary fits, else uint32."""
    token = TOKEN_TYPES[2 if vocab_size <= 1 << 16 else 4]
    return pa.schema(
        [
            pa.field("passage_id", pa.int64(), nullable=False),
            pa.field("document_id", pa.string(), nullable=False),
            pa.field("source", pa.string(), nullable=False),
            pa.field("distance", pa.float32(), nullable=False),  # to the domain's centroid
            pa.field("tokens", pa.large_list(token), nullable=False),  # each passage ends in end-of-text
        ]
    )


def partition_path(domain: int) -> str:
    """A partition's path relative to the domains folder."""
    return f"domain={domain:04d}/part-00000.arrow"


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


class DomainStore:
    """The finished domains of one store, opened for reading.

    Args:
        folder: the store's folder (the one that holds ``domains/``).
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder) / "domains"
        self.manifest: Manifest = read_manifest(self.folder, "domains")
        index = _read_table(self.folder / "index.arrow")
        self.tokens_K = np.array(index["tokens"])
        self.passages_K = np.array(index["passages"])

    @property
    def num_domains(self) -> int:
        return len(self.tokens_K)

    @property
    def vocab_size(self) -> int:
        return int(self.manifest.configuration["vocab_size"])

    @property
    def end_of_text(self) -> int:
        """Id of the token that ends a passage."""
        return int(self.manifest.configuration["end_of_text"])

    @property
    def digest(self) -> str:
        return self.manifest.digest

    @cached_property
    def tree(self) -> Tree:
        return Tree.read(self.folder / "tree.arrow")

    def windows_K(self, sequence_length: int) -> np.ndarray:
        """int64[K]: complete windows of `sequence_length` tokens (plus one) in each domain."""
        if sequence_length < 1:
            raise ValueError(f"sequence_length is {sequence_length}; it must be at least 1.")
        return np.maximum(self.tokens_K - 1, 0) // sequence_length

    def partition(self, domain: int) -> pa.RecordBatch:
        """The domain's passages (columns of :func:`partition_schema`), memory-mapped: only what is used is read.

        Raises :class:`StoreError` naming the domain and file if the partition is missing or truncated.
        """
        path = self.folder / partition_path(domain)
        try:
            return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
        except (OSError, pa.ArrowInvalid) as error:
            raise StoreError(f"domain {domain}: cannot read {path}: {error}") from error

    def tokens(self, domain: int) -> np.ndarray:
        """The domain's packed token stream, memory-mapped, read-only (uint16 or uint32).

        Raises :class:`StoreError` naming the domain and file if the partition is missing, truncated, or
        not of the length the index says.
        """
        path = self.folder / partition_path(domain)
        try:
            values = self.partition(domain).column("tokens").values.to_numpy(zero_copy_only=True)
        except (KeyError, pa.ArrowInvalid) as error:
            raise StoreError(f"domain {domain}: cannot read {path}: {error}") from error
        if len(values) != self.tokens_K[domain]:
            raise StoreError(
                f"domain {domain}: {path} holds {len(values)} tokens, the index says {self.tokens_K[domain]}. "
                "Rebuild the store."
            )
        return values


def _read_table(path: Path) -> pa.Table:
    try:
        with pa.memory_map(str(path)) as source:
            return pa.ipc.open_file(source).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise StoreError(f"cannot read {path}: {error}") from error
