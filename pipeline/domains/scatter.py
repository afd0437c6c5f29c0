"""A part of passages → its rows, tokenized, each with its domain, and sorted by coarse node.

Legend: N passages of the part, C coarse nodes, K domains.
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
from pipeline.tree.descent import descend
from storage_schema.arrow_files import read_parquet
from storage_schema.aside import written_aside
from storage_schema.domains import partition_schema
from storage_schema.manifest import StoreError
from storage_schema.stage import SCRATCH
from storage_schema.tree import Tree


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

    def sampled(self, part: str) -> Path:
        """The file with a sample of a part's embeddings: one record batch per coarse node, in order."""
        return self.scratch / f"sampled-{part}.arrow"

    def scattered(self, part: str) -> Path:
        """The file with the rows of a part: one record batch per coarse node, in order."""
        return self.scratch / f"scattered-{part}.arrow"


def scatter_part(folders: Folders, source: Path, tree: Tree) -> dict[str, np.ndarray]:
    """Tokenize one part of passages and write its rows, with their domains, in the order of their coarse nodes.

    There is one file per part, not one per part and node: those would be millions of files to open, map and flush.

    Returns:
        ``rows_C``, how many rows each node has, and ``squared``, the sum of the squared distances to the nearest coarse
        centroids. They are also kept on disk for a resume.
    """
    kept = folders.scattered(source.stem).with_suffix(".npz")
    if kept.exists():
        return read_arrays(kept)
    table = read_parquet(source, ["passage_id", "document_id", "source", "text"])
    ids, vectors_ND = read_embeddings(Path(folders.embeddings) / source.with_suffix(".arrow").name)
    if not np.array_equal(ids, table["passage_id"].to_numpy()):
        raise StoreError(f"The embeddings of {source} are of other passages. Rebuild {folders.embeddings}.")
    tokenizer = load_tokenizer(folders.tokenizer)
    tokens = tokenizer.encode(table["text"].to_pylist())
    found = descend(vectors_ND, tree)
    coarse_N = found.domains_N // (tree.num_domains // len(tree.coarse_CD))
    order = np.argsort(coarse_N, kind="stable")
    rows_C = np.bincount(coarse_N, minlength=len(tree.coarse_CD))
    offsets = np.concatenate([[0], np.cumsum([len(tokens[row]) for row in order])])
    columns = {
        name: table[name].take(order).combine_chunks() for name in ("passage_id", "document_id", "source")
    }
    columns["distance"] = pa.array(found.distances_N[order])
    columns["tokens"] = pa.LargeListArray.from_arrays(
        pa.array(offsets), pa.array(np.concatenate([tokens[row] for row in order]))
    )
    columns["domain"] = pa.array(found.domains_N[order])
    batch = pa.record_batch(columns, schema=scatter_schema(tokenizer.vocab_size))
    write_batch(folders.scattered(source.stem), batch, rows_C.tolist())
    result = {"rows_C": rows_C, "squared": found.coarse_squared_N.sum(dtype=np.float64)}
    write_arrays(kept, **result)
    return result


def scatter_schema(vocab_size: int) -> pa.Schema:
    """The schema of a partition, and the domain."""
    return partition_schema(vocab_size).append(pa.field("domain", pa.int64(), nullable=False))


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
