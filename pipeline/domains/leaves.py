"""The second step of partitioning: a coarse node's scattered rows → its leaves and their domain partitions.

Memory holds the sample the leaves are fitted on, then one piece, then one leaf, however large the node is.

Legend: N rows, k leaves of the node, D embedding size.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.domains.scatter import Folders, read_arrays, read_node, write_arrays, write_batch
from pipeline.embeddings.build import embeddings_of
from pipeline.tree.kmeans import KMeansSettings, NodeFit, fit_node
from pipeline.tree.nearest import assign, node_seed, sample_rows, without_unreached
from storage_schema.domains import partition_path, partition_schema


@dataclass(frozen=True, kw_only=True)
class TreeSettings:
    """The tree's shape and how it is fitted."""

    coarse_clusters: int
    leaf_clusters: int
    kmeans: KMeansSettings
    sample: int
    """Passages each node is fitted on, at most."""
    seed: int
    use_gpu: bool = False

    @property
    def num_domains(self) -> int:
        return self.coarse_clusters * self.leaf_clusters


def write_node(
    folders: Folders,
    node: int,
    scattered: tuple[list[str], np.ndarray],
    settings: TreeSettings,
    leaves_kD: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Fit one coarse node's leaves, or take those given, and write its domains.

    Args:
        scattered: the names of the parts, in order, and how many rows of each node they have, ``[parts, C]``.

    Returns:
        ``leaves_kD``, ``counts_k``, ``distance_k`` and ``squared_k`` (sums over a leaf's rows), ``tokens_k``
        and ``splits`` (kept on disk too, for a resume); of a node without rows only ``counts_k``.
    """
    kept = folders.scratch / f"node-{node:05d}.npz"
    if kept.exists():
        return read_arrays(kept)
    k, splits = settings.leaf_clusters, 0
    rows = scattered[1][:, node]
    if not rows.any():
        return {"counts_k": np.zeros(k, np.int64)}
    # One at a time is mapped: a process may have 65,530 mappings, and a corpus more parts.
    parts = (folders.scattered(name) for name, number in zip(scattered[0], rows, strict=True) if number)
    tables = [partial(read_node, part, node) for part in parts]
    rows = rows[rows > 0]
    if leaves_kD is None:
        fit = _fit_leaves(tables, rows, node, settings)
        leaves_kD, splits = fit.centroids_kD, fit.splits
    room = folders.scratch / f"node-{node:05d}"
    room.mkdir(exist_ok=True)
    streams = [room / f"leaf-{leaf:04d}.arrows" for leaf in range(k)]
    sums = _split(tables, leaves_kD, streams)
    for leaf in np.flatnonzero(sums["counts_k"]):
        path = Path(folders.work) / partition_path(node * k + int(leaf))
        path.parent.mkdir(exist_ok=True)
        _write_partition(streams[leaf], path)
    result = {
        **sums,
        "leaves_kD": without_unreached(leaves_kD, sums["counts_k"]),
        "splits": np.array(splits),
    }
    write_arrays(kept, **result)
    shutil.rmtree(room)
    return result


def _fit_leaves(
    tables: Sequence[Callable[[], pa.Table]], rows: np.ndarray, node: int, settings: TreeSettings
) -> NodeFit:
    """Fit on a sample of the node's rows."""
    edges = np.cumsum([0, *rows])
    seed = node_seed(settings.seed, node)
    wanted = sample_rows(int(edges[-1]), settings.sample, seed)
    cuts = pairwise(np.searchsorted(wanted, edges).tolist())
    sample = [
        embeddings_of(table())[wanted[begin:end] - first]
        for table, first, (begin, end) in zip(tables, edges, cuts, strict=False)
        if begin < end
    ]
    return fit_node(
        np.concatenate(sample), settings.leaf_clusters, settings.kmeans, seed=seed, use_gpu=settings.use_gpu
    )


def _split(
    tables: Sequence[Callable[[], pa.Table]], leaves_kD: np.ndarray, streams: list[Path]
) -> dict[str, np.ndarray]:
    """Append every row to its leaf's stream; return the leaves' sums."""
    k = len(leaves_kD)
    sums = {name: np.zeros(k) for name in ("distance_k", "squared_k")}
    sums |= {name: np.zeros(k, np.int64) for name in ("counts_k", "tokens_k")}
    with ExitStack() as stack:
        writers: dict[int, pa.ipc.RecordBatchStreamWriter] = {}
        for read in tables:
            table = read()
            leaf_N, distance_N = assign(embeddings_of(table), leaves_kD)
            column = table.schema.get_field_index("embedding")
            table = table.set_column(column, "distance", pa.array(distance_N))
            lengths_N = np.diff(table["tokens"].combine_chunks().offsets.to_numpy())
            sums["counts_k"] += np.bincount(leaf_N, minlength=k)
            sums["tokens_k"] += np.bincount(leaf_N, lengths_N, minlength=k).astype(np.int64)
            sums["distance_k"] += np.bincount(leaf_N, distance_N, minlength=k)
            sums["squared_k"] += np.bincount(leaf_N, np.square(distance_N), minlength=k)
            for leaf in np.unique(leaf_N):
                if leaf not in writers:
                    writers[leaf] = stack.enter_context(pa.ipc.new_stream(str(streams[leaf]), table.schema))
                writers[leaf].write_table(table.take(np.flatnonzero(leaf_N == leaf)))
    return sums


def _write_partition(stream: Path, path: Path) -> None:
    """A leaf's passages in the order of their ids, as one record batch."""
    with pa.memory_map(str(stream)) as source:
        table = pa.ipc.open_stream(source).read_all()
    token_type = table.schema.field("tokens").type.value_type
    schema = partition_schema(1 << 16 if token_type == pa.uint16() else 1 << 17)
    table = table.take(np.argsort(table["passage_id"].to_numpy())).cast(schema).combine_chunks()
    [batch] = table.to_batches()
    write_batch(path, batch)
