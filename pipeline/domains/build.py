"""Passages and their embeddings → the tree and the domain partitions.

1. *Fit* (``fitting.py``): the root on a sample of all embeddings, then each coarse node's leaves (or the tree is given,
   for documents added to a store).
2. *Scatter* (``scatter.py``): each part of passages is tokenized, and its rows are written with their domains, in the
   order of their coarse nodes.
3. *Leaves* (``leaves.py``): each coarse node's domains are written to a file, one after the other.

So no task holds thousands of files open, memory does not grow with the corpus, and each part and node is resumed on its
own.

Legend: K domains, C coarse nodes, k leaves of a node, D embedding size.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.domains.fitting import TreeSettings, fit_tree
from pipeline.domains.leaves import write_node
from pipeline.domains.scatter import Folders, scatter_part
from pipeline.tasks import Report, ignore_progress, run_tasks, share
from pipeline.tree.nearest import without_unreached
from storage_schema.corpus import part_files, rows_of
from storage_schema.domains import INDEX
from storage_schema.manifest import Manifest, StoreError
from storage_schema.stage import Stage
from storage_schema.tree import Tree

FITTED = 0.2
"""The share of the progress at which a tree is fitted."""
TINY = 0.1
"""A domain with less than this share of the mean number of passages is counted as tiny."""


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
        report: progress in passages. Each step counts as a share of all of them.

    Raises:
        ValueError: there are fewer passages than domains, or fewer distinct embeddings (counted only if the root is
            fitted on all of them).
    """
    parts = part_files(folders.passages, "train")
    rows = rows_of(parts)
    total = sum(rows)
    _remove_earlier(Path(folders.work), folders.scratch)
    folders.scratch.mkdir(exist_ok=True)

    def share_of(begin: float, end: float) -> Report:
        return lambda done, of: report(int(total * (begin + (end - begin) * done / max(of, 1))), total)

    if tree is None:
        begin = FITTED
        fitted, splits = fit_tree(folders, parts, rows, settings, share_of(0, begin))
    else:
        begin, fitted, splits = 0.0, tree, 0
    middle = (1 + begin) / 2
    shared = share(fitted)
    scattered = run_tasks(
        scatter_part,
        [(folders, part, shared) for part in parts],
        weights=rows,
        report=share_of(begin, middle),
    )
    rows_of_parts = share(([part.stem for part in parts], np.stack([part["rows_C"] for part in scattered])))
    nodes = run_tasks(
        write_node,
        [(folders, node, rows_of_parts, settings.leaf_clusters) for node in range(settings.coarse_clusters)],
        report=share_of(middle, 1),
    )
    assembled, index = _assemble(fitted, nodes)
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
    if counts["passages"] != total:
        raise StoreError(
            f"The domains would hold {counts['passages']} passages of {total}: something changed {folders.work} "
            "while they were written. Remove that folder and build again."
        )
    return stage.finish(counts, run=run_tasks)


def _remove_earlier(work: Path, scratch: Path) -> None:
    """Remove what a build of an earlier release left, which put each domain into a file, and scratch elsewhere."""
    for folder in [*work.glob("domain=*"), *work.glob("scatter")]:
        shutil.rmtree(folder)
    for done in scratch.glob("node-*.npz"):
        done.unlink()


def _assemble(fitted: Tree, nodes: list[dict[str, np.ndarray]]) -> tuple[Tree, pa.Table]:
    """The tree with what was found of its leaves; those that nothing reached are NaN."""
    blank = {"distance_k": np.zeros(len(nodes[0]["counts_k"]))}
    blank["tokens_k"] = blank["tokens_at_k"] = blank["distance_k"].astype(np.int64)
    stacked = {
        name: np.concatenate([(blank | node)[name] for node in nodes]) for name in (*blank, "counts_k")
    }
    counts_K = stacked["counts_k"]
    counts_C = counts_K.reshape(len(nodes), -1).sum(1)
    tree = replace(
        fitted,
        coarse_CD=without_unreached(fitted.coarse_CD, counts_C),
        leaves_KD=without_unreached(fitted.leaves_KD, counts_K),
        counts_K=counts_K,
        mean_distance_K=(stacked["distance_k"] / np.maximum(counts_K, 1)).astype(np.float32),
    )
    domains_K = np.arange(tree.num_domains)
    columns = [domains_K, counts_K, stacked["tokens_k"], domains_K // (tree.num_domains // len(nodes))]
    index = pa.table([*columns, stacked["tokens_at_k"]], names=INDEX.names)
    return tree, index.cast(INDEX)


def _report_of(tree: Tree, scattered: list[dict], nodes: list[dict[str, np.ndarray]], splits: int) -> dict:
    """The numbers by which a person judges a tree. Inertia is the mean squared distance over all passages."""
    passages, even = int(tree.counts_K.sum()), tree.counts_K.sum() / tree.num_domains
    leaf_squared = sum(float(node["squared_k"].sum()) for node in nodes if "squared_k" in node)
    return {
        "coarse_inertia": round(sum(float(part["squared"]) for part in scattered) / passages, 6),
        "leaf_inertia": round(leaf_squared / passages, 6),
        "imbalance": round(tree.imbalance, 6),
        "splits": splits,
        "empty_domains": int((tree.counts_K == 0).sum()),
        "tiny_domains": int(((tree.counts_K > 0) & (tree.counts_K < TINY * even)).sum()),
        "largest_domain": int(tree.counts_K.max()),
    }
