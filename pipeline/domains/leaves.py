"""A coarse node's scattered rows → the file of its leaves' domain partitions.

Memory holds one part's rows at a time, then one leaf at a time, however large the node is.

Legend: N rows, k leaves of the node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.domains.scatter import Folders, read_arrays, read_node, write_arrays
from storage_schema.arrow_files import place_of_values
from storage_schema.aside import own_file, written_aside
from storage_schema.domains import partition_path, partition_schema


def write_node(
    folders: Folders, node: int, scattered: tuple[list[str], np.ndarray], k: int
) -> dict[str, np.ndarray]:
    """Write the domains of one coarse node, which has `k` leaves.

    Args:
        scattered: the names of the parts in order, and how many rows each part has of each node, ``[parts, C]``.

    Returns:
        ``counts_k``, ``tokens_k``, ``tokens_at_k`` (the byte of the file at which a leaf's tokens begin),
        ``distance_k`` and ``squared_k`` (sums over a leaf's rows); only ``counts_k`` if the node has no rows. They are
        also kept on disk for a resume.
    """
    kept = folders.scratch / f"partitions-{node:05d}.npz"
    if kept.exists():
        return read_arrays(kept)
    rows = scattered[1][:, node]
    if not rows.any():
        return {"counts_k": np.zeros(k, np.int64)}
    # Parts are mapped one at a time: a process may have 65,530 mappings, and a corpus may have more parts.
    parts = (folders.scattered(name) for name, number in zip(scattered[0], rows, strict=True) if number)
    tables = [partial(read_node, part, node) for part in parts]
    path = Path(folders.work) / partition_path(node)
    # A name of its own: a task that Ray repeats may find its first attempt still at work.
    with own_file(folders.scratch / f"node-{node:05d}.arrow") as by_leaf:
        sums, leaf_of_batch = _split(tables, node * k, k, by_leaf)
        with pa.memory_map(str(by_leaf)) as source, pa.ipc.open_file(source) as file:
            _write_partitions(
                path,
                # One leaf's at a time: of a large node, the handles of all batches take a gigabyte.
                (list(map(file.get_batch, np.flatnonzero(leaf_of_batch == leaf))) for leaf in range(k)),
                file.schema,
            )
    with pa.memory_map(str(path)) as source:
        buffer = source.read_buffer()
        written = pa.ipc.open_file(buffer)
        for leaf in np.flatnonzero(sums["counts_k"]).tolist():
            sums["tokens_at_k"][leaf] = place_of_values(written.get_batch(leaf)["tokens"], buffer)
    write_arrays(kept, **sums)
    return sums


def _split(
    tables: Sequence[Callable[[], pa.Table]], first: int, k: int, path: Path
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Write every row to the Arrow file at `path`, in batches of one leaf each.

    One file, however many leaves there are: a process may have only a limited number of files open.

    Args:
        first: the domain of the first of the `k` leaves.

    Returns:
        The leaves' sums, and the leaf of each batch in the file.
    """
    sums = {name: np.zeros(k) for name in ("distance_k", "squared_k")}
    sums |= {name: np.zeros(k, np.int64) for name in ("counts_k", "tokens_k", "tokens_at_k")}
    leaf_of_batch: list[int] = []
    with ExitStack() as stack:
        writer = None
        for read in tables:
            table = read()
            leaf_N, distance_N = table["domain"].to_numpy() - first, table["distance"].to_numpy()
            table = table.drop_columns("domain")
            lengths_N = np.diff(table["tokens"].combine_chunks().offsets.to_numpy())
            counts_k = np.bincount(leaf_N, minlength=k)
            sums["counts_k"] += counts_k
            sums["tokens_k"] += np.bincount(leaf_N, lengths_N, minlength=k).astype(np.int64)
            sums["distance_k"] += np.bincount(leaf_N, distance_N, minlength=k)
            sums["squared_k"] += np.bincount(leaf_N, np.square(distance_N), minlength=k)
            if writer is None:
                writer = stack.enter_context(pa.ipc.new_file(str(path), table.schema))
            [batch] = table.take(np.argsort(leaf_N, kind="stable")).combine_chunks().to_batches()
            for leaf, end in zip(range(k), np.cumsum(counts_k).tolist(), strict=True):
                if counts_k[leaf]:
                    writer.write_batch(batch.slice(end - counts_k[leaf], counts_k[leaf]))
                    leaf_of_batch.append(leaf)
    return sums, np.array(leaf_of_batch)


def _write_partitions(path: Path, leaves: Iterable[list[pa.RecordBatch]], found: pa.Schema) -> None:
    """Write each leaf's passages in the order of their ids, as one record batch, leaf after leaf."""
    token_type = found.field("tokens").type.value_type
    schema = partition_schema(1 << 16 if token_type == pa.uint16() else 1 << 17)
    with written_aside(path) as aside, pa.ipc.new_file(str(aside), schema) as writer:
        for leaf in leaves:
            table = pa.Table.from_batches(leaf, found)
            table = table.take(np.argsort(table["passage_id"].to_numpy())).cast(schema).combine_chunks()
            writer.write_batch(
                pa.RecordBatch.from_arrays([_whole(column) for column in table.columns], schema=schema)
            )


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """The column as one array, also if it is empty."""
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)
