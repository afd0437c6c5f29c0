"""Passages and their embeddings → the tree and the domain partitions.

1. The root is fitted on a sample of all embeddings (or the tree is given, for documents added to a store).
2. *Scatter* (``scatter.py``): each part of passages is tokenized, and its rows are written in the order of their coarse
   nodes.
3. *Leaves* (``leaves.py``): each coarse node fits its leaves, then writes its domains one after the other.

So no task holds thousands of files open, memory does not grow with the corpus, and each part and node is resumed on its
own.

Legend: N passages, K domains, C coarse nodes, k leaves of a node, D embedding size.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.domains.leaves import TreeSettings, write_node
from pipeline.domains.scatter import Folders, read_arrays, scatter_part, write_arrays
from pipeline.embeddings.build import read_embeddings
from pipeline.tasks import Report, free_cores, ignore_progress, run_tasks, share
from pipeline.tree.kmeans import fit_node
from pipeline.tree.nearest import distinct_rows, node_seed, sample_rows, without_unreached
from storage_schema.corpus import part_files
from storage_schema.domains import INDEX
from storage_schema.errors import UserError
from storage_schema.manifest import Manifest, StoreError
from storage_schema.stage import Stage
from storage_schema.tree import Tree

ROOT = -1
TINY = 0.1
"""A domain with less than this share of the mean number of passages is counted as tiny."""


def check_enough_passages(
    passages: int, settings: TreeSettings, *, what: str = "distinct training passages"
) -> None:
    """Raise ValueError if there are fewer passages than domains."""
    if passages < settings.num_domains:
        raise UserError(
            f"There are {passages} {what}, fewer than the {settings.num_domains} domains "
            f"({settings.coarse_clusters} x {settings.leaf_clusters}). Give more text, or lower "
            "coarse_clusters and leaf_clusters."
        )


def build_domains(
    stage: Stage,
    folders: Folders,
    settings: TreeSettings,
    *,
    tree: Tree | None = None,
    report: Report = ignore_progress,
) -> Manifest:
    """Build the ``domains`` stage from finished passages, embeddings and tokenizer.

    Args:
        tree: assign to this tree instead of fitting one; it has the shape that `settings` gives.
        report: progress in passages. One that lies at its coarse node and is to be written counts as half.

    Raises:
        ValueError: there are fewer passages than domains, or fewer distinct embeddings (counted only if the root is
            fitted on all of them).
    """
    parts = part_files(folders.passages, "train")
    rows = [pq.read_metadata(part).num_rows for part in parts]
    shutil.rmtree(Path(folders.work) / "scatter", ignore_errors=True)  # earlier releases put scratch here
    folders.scratch.mkdir(exist_ok=True)
    gpus = 1 if settings.use_gpu else 0
    if tree is None:
        check_enough_passages(sum(rows), settings)
        threads = free_cores()
        arguments = (folders, rows, settings, threads)
        [(coarse_CD, splits)] = run_tasks(fit_root, [arguments], num_cpus=threads, num_gpus=gpus)
    else:
        coarse_CD, splits = tree.coarse_CD, 0
    total = sum(rows)
    shared_CD = share(coarse_CD)
    scattered = run_tasks(
        scatter_part,
        [(folders, part, shared_CD) for part in parts],
        weights=rows,
        report=lambda done, _: report(done // 2, total),
    )
    rows_of_parts = share(([part.stem for part in parts], np.stack([part["rows_C"] for part in scattered])))
    nodes = run_tasks(
        write_node,
        [
            (folders, node, rows_of_parts, settings, _leaves(tree, node, settings))
            for node in range(settings.coarse_clusters)
        ],
        num_gpus=gpus,
        report=lambda done, of: report(total * (of + done) // (2 * of), total),
    )
    assembled, index = _assemble(coarse_CD, nodes)
    if tree is not None:  # centroids that none of these passages reached stay as they are
        assembled = replace(assembled, coarse_CD=tree.coarse_CD, leaves_KD=tree.leaves_KD)
    assembled.write(stage.work / "tree.arrow")
    with pa.ipc.new_file(str(stage.work / "index.arrow"), INDEX) as writer:
        writer.write_table(index)
    report(total, total)
    counts = {
        "passages": int(assembled.counts_K.sum()),
        "tokens": int(sum(index["tokens"].to_pylist())),
        "domains": assembled.num_domains,
        **_report_of(assembled, scattered, nodes, splits),
        "clustered_on": "gpu" if settings.use_gpu else "cpu",
    }
    if counts["passages"] != sum(rows):
        raise StoreError(
            f"The domains would hold {counts['passages']} passages of {sum(rows)}: something changed {folders.work} "
            "while they were written. Remove that folder and build again."
        )
    return stage.finish(counts, run=run_tasks)


def _leaves(tree: Tree | None, node: int, settings: TreeSettings) -> np.ndarray | None:
    """A node's leaves in the given tree; None if no tree is given."""
    k = settings.leaf_clusters
    return None if tree is None else tree.leaves_KD[node * k : (node + 1) * k]


def fit_root(
    folders: Folders, rows: list[int], settings: TreeSettings, threads: int
) -> tuple[np.ndarray, int]:
    """Fit the coarse centroids, float32 ``[C, D]``; also returns how many splits it took. Kept on disk for a resume."""
    kept = folders.scratch / "root.npz"
    if kept.exists():
        arrays = read_arrays(kept)
        return arrays["coarse_CD"], int(arrays["splits"])
    seed = node_seed(settings.seed, ROOT)
    wanted = sample_rows(sum(rows), settings.sample, seed)
    edges = np.cumsum([0, *rows])
    cuts = pairwise(np.searchsorted(wanted, edges).tolist())
    sample = []
    for part, first, (begin, end) in zip(part_files(folders.passages, "train"), edges, cuts, strict=False):
        inside = wanted[begin:end] - first
        if len(inside):
            path = Path(folders.embeddings) / part.with_suffix(".arrow").name
            sample.append(read_embeddings(path)[1][inside])
    vectors_ND = np.concatenate(sample)
    if len(vectors_ND) == sum(rows):
        check_enough_passages(
            len(distinct_rows(vectors_ND)), settings, what="distinct embeddings of passages"
        )
    fit = fit_node(
        vectors_ND,
        settings.coarse_clusters,
        settings.kmeans,
        seed=seed,
        threads=threads,
        use_gpu=settings.use_gpu,
    )
    write_arrays(kept, coarse_CD=fit.centroids_kD, splits=np.array(fit.splits))
    return fit.centroids_kD, fit.splits


def _assemble(coarse_CD: np.ndarray, nodes: list[dict[str, np.ndarray]]) -> tuple[Tree, pa.Table]:
    k, size = len(nodes[0]["counts_k"]), coarse_CD.shape[1]
    blank = {
        "leaves_kD": np.full((k, size), np.nan, np.float32),
        "distance_k": np.zeros(k),
        "tokens_k": np.zeros(k, np.int64),
    }
    stacked = {
        name: np.concatenate([(blank | node)[name] for node in nodes]) for name in (*blank, "counts_k")
    }
    counts_C = stacked["counts_k"].reshape(len(nodes), k).sum(1)
    tree = Tree(
        coarse_CD=without_unreached(coarse_CD, counts_C),
        leaves_KD=stacked["leaves_kD"],
        counts_K=stacked["counts_k"],
        mean_distance_K=(stacked["distance_k"] / np.maximum(stacked["counts_k"], 1)).astype(np.float32),
    )
    index = pa.table([np.arange(tree.num_domains), tree.counts_K, stacked["tokens_k"]], names=INDEX.names)
    return tree, index.cast(INDEX)


def _report_of(tree: Tree, scattered: list[dict], nodes: list[dict[str, np.ndarray]], splits: int) -> dict:
    """The numbers by which a person judges a tree. Inertia is the mean squared distance over all passages."""
    passages, even = int(tree.counts_K.sum()), tree.counts_K.sum() / tree.num_domains
    leaf_squared = sum(float(node["squared_k"].sum()) for node in nodes if "squared_k" in node)
    return {
        "coarse_inertia": round(sum(float(part["squared"]) for part in scattered) / passages, 6),
        "leaf_inertia": round(leaf_squared / passages, 6),
        "imbalance": round(tree.imbalance, 6),
        "splits": splits + sum(int(node.get("splits", 0)) for node in nodes),
        "empty_domains": int((tree.counts_K == 0).sum()),
        "tiny_domains": int(((tree.counts_K > 0) & (tree.counts_K < TINY * even)).sum()),
        "largest_domain": int(tree.counts_K.max()),
    }
