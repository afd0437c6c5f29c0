"""Passages and their embeddings → the tree and the domain partitions.

1. The root is fitted on a sample of all embeddings.
2. *Scatter* (``scatter.py``): each part of passages is tokenized and written to the nodes its rows go to.
3. *Node*: each coarse node fits its leaves, then writes its domains one after the other.

So no task ever holds more than one partition open, and each part and node is resumed on its own.

Legend: N passages, K domains, C coarse nodes, k leaves of a node, D embedding size.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.clustering import assign, distinct_rows, fit_node, node_seed, sample_rows, without_unreached
from pipeline.embedding import read_embeddings
from pipeline.passages import part_files
from pipeline.scatter import Folders, read_table, scatter_part, write_batch
from pipeline.tasks import Report, ignore_progress, run_tasks
from storage_schema.domains import INDEX, Tree, partition_path, partition_schema
from storage_schema.manifest import Manifest, Stage

ROOT = -1


@dataclass(frozen=True, kw_only=True)
class TreeSettings:
    """The tree's shape and how it is fitted."""

    coarse_clusters: int
    leaf_clusters: int
    iterations: int
    sample: int
    """Passages each node is fitted on, at most."""
    seed: int
    use_gpu: bool = False

    @property
    def num_domains(self) -> int:
        return self.coarse_clusters * self.leaf_clusters


def check_enough_passages(
    passages: int, settings: TreeSettings, *, what: str = "distinct training passages"
) -> None:
    """Raise ValueError if there are fewer passages than domains."""
    if passages < settings.num_domains:
        raise ValueError(
            f"There are {passages} {what}, fewer than the {settings.num_domains} domains "
            f"({settings.coarse_clusters} x {settings.leaf_clusters}). Give more text, or lower "
            "coarse_clusters and leaf_clusters."
        )


def build_domains(
    stage: Stage, folders: Folders, settings: TreeSettings, *, report: Report = ignore_progress
) -> Manifest:
    """Build the ``domains`` stage from finished passages, embeddings and tokenizer.

    Raises:
        ValueError: fewer passages than domains, or fewer distinct embeddings (which are counted if the root
            is fitted on all of them).
    """
    parts = part_files(folders.passages, "train")
    rows = [pq.read_metadata(part).num_rows for part in parts]
    check_enough_passages(sum(rows), settings)
    folders.scratch.mkdir(exist_ok=True)
    coarse_CD = _fit_root(folders, rows, settings)
    total = 2 * sum(rows)
    run_tasks(
        scatter_part,
        [(folders, number, coarse_CD) for number in range(len(parts))],
        weights=rows,
        report=lambda done, _: report(done, total),
    )
    per_node = sum(rows) // settings.coarse_clusters
    nodes = run_tasks(
        write_node,
        [(folders, node, settings) for node in range(settings.coarse_clusters)],
        num_gpus=1 if settings.use_gpu else 0,
        report=lambda done, _: report(sum(rows) + done * per_node, total),
    )
    tree, index = _assemble(coarse_CD, nodes)
    tree.write(stage.work / "tree.arrow")
    with pa.ipc.new_file(str(stage.work / "index.arrow"), INDEX) as writer:
        writer.write_table(index)
    shutil.rmtree(folders.scratch)
    report(total, total)
    counts = {
        "passages": int(tree.counts_K.sum()),
        "tokens": int(sum(index["tokens"].to_pylist())),
        "domains": tree.num_domains,
        "empty_domains": int((tree.counts_K == 0).sum()),
        "imbalance": round(tree.imbalance, 6),
        "largest_domain": int(tree.counts_K.max()),
        "clustered_on": "gpu" if settings.use_gpu else "cpu",
    }
    assert counts["passages"] == sum(rows)
    return stage.finish(counts)


def write_node(folders: Folders, node: int, settings: TreeSettings) -> dict[str, np.ndarray]:
    """Fit one coarse node's leaves and write its domains.

    Returns:
        ``leaves_kD``, ``counts_k``, ``mean_distance_k`` and ``tokens_k`` (kept on disk too, for a resume).
    """
    kept = folders.node(node).with_suffix(".npz")
    if kept.exists():
        with np.load(kept, allow_pickle=False) as arrays:
            return dict(arrays)
    pieces = sorted(folders.node(node).glob("part-*.arrow"))
    k = settings.leaf_clusters
    if not pieces:
        return {"counts_k": np.zeros(k, np.int64)}
    table = pa.concat_tables([read_table(piece) for piece in pieces]).combine_chunks()
    column = table["embedding"].combine_chunks()
    vectors_ND = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    vectors_ND = vectors_ND.reshape(len(table), column.type.list_size)
    seed = node_seed(settings.seed, node)
    leaves_kD = fit_node(
        vectors_ND[sample_rows(len(table), settings.sample, seed)],
        k,
        iterations=settings.iterations,
        seed=seed,
        use_gpu=settings.use_gpu,
    )
    leaf_N, distance_N = assign(vectors_ND, leaves_kD)
    counts_k = np.bincount(leaf_N, minlength=k)
    table = table.drop_columns("embedding").add_column(3, "distance", pa.array(distance_N))
    tokens_k = _write_leaves(Path(folders.work), node * k, table, leaf_N, counts_k)
    result = {
        "leaves_kD": without_unreached(leaves_kD, counts_k),
        "counts_k": counts_k,
        "mean_distance_k": np.bincount(leaf_N, distance_N, minlength=k) / np.maximum(counts_k, 1),
        "tokens_k": tokens_k,
    }
    with open(f"{kept}.aside", "wb") as file:
        np.savez(file, **result)
    os.replace(f"{kept}.aside", kept)
    return result


def _write_leaves(
    work: Path, first: int, table: pa.Table, leaf_N: np.ndarray, counts_k: np.ndarray
) -> np.ndarray:
    """Write each leaf's passages in the order of their ids; return the tokens of each leaf."""
    order = np.lexsort([table["passage_id"].to_numpy(), leaf_N])
    table = table.take(pa.array(order)).combine_chunks()
    token_type = table.schema.field("tokens").type.value_type
    schema = partition_schema(1 << 16 if token_type == pa.uint16() else 1 << 17)
    tokens_k = np.zeros(len(counts_k), np.int64)
    starts = np.concatenate([[0], np.cumsum(counts_k)])
    for leaf in np.flatnonzero(counts_k):
        rows = table.slice(starts[leaf], counts_k[leaf]).combine_chunks()
        path = work / partition_path(first + int(leaf))
        path.parent.mkdir(exist_ok=True)
        [batch] = rows.cast(schema).to_batches()
        write_batch(path, batch)
        tokens_k[leaf] = sum(len(tokens) for tokens in batch.column("tokens"))
    return tokens_k


def _fit_root(folders: Folders, rows: list[int], settings: TreeSettings) -> np.ndarray:
    """Coarse centroids float32 ``[C, D]``, kept on disk for a resume."""
    kept = folders.scratch / "root.npy"
    if kept.exists():
        return np.load(kept, allow_pickle=False)
    seed = node_seed(settings.seed, ROOT)
    wanted = sample_rows(sum(rows), settings.sample, seed)
    edges = np.concatenate([[0], np.cumsum(rows)])
    sample = []
    for number, part in enumerate(part_files(folders.passages, "train")):
        inside = wanted[(wanted >= edges[number]) & (wanted < edges[number + 1])] - edges[number]
        if len(inside):
            path = Path(folders.embeddings) / part.with_suffix(".arrow").name
            sample.append(read_embeddings(path)[1][inside])
    vectors_ND = np.concatenate(sample)
    if len(vectors_ND) == sum(rows):
        check_enough_passages(
            len(distinct_rows(vectors_ND)), settings, what="distinct embeddings of passages"
        )
    coarse_CD = fit_node(
        vectors_ND,
        settings.coarse_clusters,
        iterations=settings.iterations,
        seed=seed,
        use_gpu=settings.use_gpu,
    )
    with open(f"{kept}.aside", "wb") as file:
        np.save(file, coarse_CD)
    os.replace(f"{kept}.aside", kept)
    return coarse_CD


def _assemble(coarse_CD: np.ndarray, nodes: list[dict[str, np.ndarray]]) -> tuple[Tree, pa.Table]:
    k, size = len(nodes[0]["counts_k"]), coarse_CD.shape[1]
    blank = {
        "leaves_kD": np.full((k, size), np.nan, np.float32),
        "mean_distance_k": np.zeros(k),
        "tokens_k": np.zeros(k, np.int64),
    }
    stacked = {
        name: np.concatenate([(blank | node)[name] for node in nodes])
        for name in ("leaves_kD", "counts_k", "mean_distance_k", "tokens_k")
    }
    counts_C = stacked["counts_k"].reshape(len(nodes), k).sum(1)
    tree = Tree(
        coarse_CD=without_unreached(coarse_CD, counts_C),
        leaves_KD=stacked["leaves_kD"],
        counts_K=stacked["counts_k"],
        mean_distance_K=stacked["mean_distance_k"].astype(np.float32),
    )
    index = pa.table([np.arange(tree.num_domains), tree.counts_K, stacked["tokens_k"]], names=INDEX.names)
    return tree, index.cast(INDEX)
