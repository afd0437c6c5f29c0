"""The first step of partitioning: a part of passages → its rows, tokenized, at their coarse nodes.

Legend: N passages of the part, C coarse nodes, D embedding size.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.clustering import assign
from pipeline.embedding import read_embeddings
from pipeline.passages import part_files
from pipeline.tokenizer import load_tokenizer
from storage_schema.arrow_files import read_parquet
from storage_schema.domains import partition_schema
from storage_schema.manifest import StoreError, write_atomically


@dataclass(frozen=True, kw_only=True)
class Folders:
    """What partitioning reads and where it works."""

    passages: str
    embeddings: str
    tokenizer: str
    work: str

    @property
    def scratch(self) -> Path:
        """What the steps hand on to each other; removed at the end."""
        return Path(self.work) / "scatter"

    def node(self, node: int) -> Path:
        """The scattered rows of one coarse node."""
        return self.scratch / f"node-{node:05d}"


def scatter_part(folders: Folders, number: int, coarse_CD: np.ndarray) -> float:
    """Tokenize one part and write its rows, with their embeddings, to their coarse nodes' folders.

    Returns:
        The sum of the rows' squared distances to their coarse centroid.
    """
    finished = folders.scratch / f"part-{number:05d}.finished"
    if finished.exists():
        return float(finished.read_text())
    source = part_files(folders.passages, "train")[number]
    table = read_parquet(source, ["passage_id", "document_id", "source", "text"])
    ids, vectors_ND = read_embeddings(Path(folders.embeddings) / source.with_suffix(".arrow").name)
    if not np.array_equal(ids, table["passage_id"].to_numpy()):
        raise StoreError(f"The embeddings of {source} are of other passages. Rebuild {folders.embeddings}.")
    tokenizer = load_tokenizer(folders.tokenizer)
    tokens = tokenizer.encode(table["text"].to_pylist())
    schema = scatter_schema(tokenizer.vocab_size, vectors_ND.shape[1])
    coarse_N, distance_N = assign(vectors_ND, coarse_CD)
    for node in np.unique(coarse_N):
        rows = np.flatnonzero(coarse_N == node)
        offsets = np.concatenate([[0], np.cumsum([len(tokens[row]) for row in rows])])
        columns = [
            *(table[name].take(rows).combine_chunks() for name in ("passage_id", "document_id", "source")),
            pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND[rows].reshape(-1)), vectors_ND.shape[1]),
            pa.LargeListArray.from_arrays(
                pa.array(offsets), pa.array(np.concatenate([tokens[row] for row in rows]))
            ),
        ]
        folder = folders.node(int(node))
        folder.mkdir(exist_ok=True)
        write_batch(folder / f"part-{number:05d}.arrow", pa.record_batch(columns, schema=schema))
    squared = float(np.square(distance_N, dtype=np.float64).sum())
    write_atomically(finished, repr(squared))
    return squared


def scatter_schema(vocab_size: int, size: int) -> pa.Schema:
    """A partition's schema with the embedding in place of the distance."""
    partition = partition_schema(vocab_size)
    embedding = pa.field("embedding", pa.list_(pa.float16(), size), nullable=False)
    return partition.set(partition.get_field_index("distance"), embedding)


def write_batch(path: Path, batch: pa.RecordBatch) -> None:
    """Write an Arrow file of one record batch, aside and then renamed."""
    with pa.ipc.new_file(f"{path}.aside", batch.schema) as writer:
        writer.write_batch(batch)
    os.replace(f"{path}.aside", path)


def read_table(path: Path) -> pa.Table:
    """An Arrow file, memory-mapped."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Keep named arrays for a resume, written aside and then renamed."""
    with open(f"{path}.aside", "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    os.replace(f"{path}.aside", path)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """What :func:`write_arrays` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)
