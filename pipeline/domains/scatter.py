"""The first step of partitioning: a part of passages → its rows, tokenized and sorted by coarse node.

Legend: N passages of the part, C coarse nodes, D embedding size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.embeddings.build import read_embeddings
from pipeline.tokenizer import load_tokenizer
from pipeline.tree.nearest import assign
from storage_schema.arrow_files import read_parquet
from storage_schema.aside import written_aside
from storage_schema.domains import partition_schema
from storage_schema.manifest import StoreError
from storage_schema.stage import SCRATCH


@dataclass(frozen=True, kw_only=True)
class Folders:
    """The folders that partitioning reads from and works in."""

    passages: str
    embeddings: str
    tokenizer: str
    work: str

    @property
    def scratch(self) -> Path:
        """The folder of files that only later steps need; it is not part of the stage."""
        return Path(self.work) / SCRATCH

    def scattered(self, part: str) -> Path:
        """The file with the rows of a part: one record batch per coarse node, in order."""
        return self.scratch / f"{part}.arrow"


def scatter_part(folders: Folders, source: Path, coarse_CD: np.ndarray) -> dict[str, np.ndarray]:
    """Tokenize one part of passages and write its rows, with their embeddings, in the order of their coarse nodes.

    There is one file per part, not one per part and node: those would be millions of files to open, map and flush.

    Returns:
        ``rows_C``, how many rows each node has, and ``squared``, the sum of the squared distances to the coarse
        centroids. They are also kept on disk for a resume.
    """
    kept = folders.scratch / f"{source.stem}.npz"
    if kept.exists():
        return read_arrays(kept)
    table = read_parquet(source, ["passage_id", "document_id", "source", "text"])
    ids, vectors_ND = read_embeddings(Path(folders.embeddings) / source.with_suffix(".arrow").name)
    if not np.array_equal(ids, table["passage_id"].to_numpy()):
        raise StoreError(f"The embeddings of {source} are of other passages. Rebuild {folders.embeddings}.")
    tokenizer = load_tokenizer(folders.tokenizer)
    tokens = tokenizer.encode(table["text"].to_pylist())
    schema = scatter_schema(tokenizer.vocab_size, vectors_ND.shape[1])
    coarse_N, distance_N = assign(vectors_ND, coarse_CD)
    order = np.argsort(coarse_N, kind="stable")
    rows_C = np.bincount(coarse_N, minlength=len(coarse_CD))
    offsets = np.concatenate([[0], np.cumsum([len(tokens[row]) for row in order])])
    columns = [
        *(table[name].take(order).combine_chunks() for name in ("passage_id", "document_id", "source")),
        pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND[order].reshape(-1)), vectors_ND.shape[1]),
        pa.LargeListArray.from_arrays(
            pa.array(offsets), pa.array(np.concatenate([tokens[row] for row in order]))
        ),
    ]
    write_batch(folders.scattered(source.stem), pa.record_batch(columns, schema=schema), rows_C.tolist())
    result = {"rows_C": rows_C, "squared": np.square(distance_N, dtype=np.float64).sum()}
    write_arrays(kept, **result)
    return result


def scatter_schema(vocab_size: int, size: int) -> pa.Schema:
    """The schema of a partition, with the embedding in place of the distance."""
    partition = partition_schema(vocab_size)
    embedding = pa.field("embedding", pa.list_(pa.float16(), size), nullable=False)
    return partition.set(partition.get_field_index("distance"), embedding)


def write_batch(path: Path, batch: pa.RecordBatch, rows: Sequence[int] = ()) -> None:
    """Write an Arrow file aside and rename it. The file has one record batch, or one per entry of `rows`, of this many
    rows each.
    """
    with written_aside(path) as aside, pa.ipc.new_file(str(aside), batch.schema) as writer:
        for begin, end in pairwise([0, *np.cumsum(rows or [len(batch)]).tolist()]):
            writer.write_batch(batch.slice(begin, end - begin))


def read_node(path: Path, node: int) -> pa.Table:
    """A node's rows in a scattered part. They are memory-mapped as long as the table is in use."""
    with pa.memory_map(str(path)) as source:
        return pa.Table.from_batches([pa.ipc.open_file(source).get_batch(node)])


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write named arrays aside and rename the file; a resumed build reads them."""
    with written_aside(path) as aside, open(aside, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays that :func:`write_arrays` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)
