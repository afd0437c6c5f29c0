"""Embeddings → the tree: the root on a sample of all, then each coarse node's leaves on those of the sample that lie
there.

Legend: N vectors, C coarse nodes, k leaves of a node, K domains, D embedding size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.domains.scatter import Folders, read_arrays, read_node, write_arrays, write_batch
from pipeline.embeddings.build import embeddings_of, read_embeddings
from pipeline.tasks import Report, free_cores, run_tasks, share
from pipeline.tree.kmeans import KMeansSettings, fit_node
from pipeline.tree.nearest import assign, distinct_rows, node_seed, sample_rows
from storage_schema.corpus import part_files
from storage_schema.errors import UserError
from storage_schema.tree import Tree

MOST_DOMAINS = 200_000
"""Soups and pages name every domain in JSON, whose bound is in storage_schema/json_files.py; more were not tried."""
ROOT, PARTS = -1, -2
"""Numbers of seeds: the root's, and that of the first part; the next parts' are one less each. A node has its own."""


@dataclass(frozen=True, kw_only=True)
class TreeSettings:
    """The tree's shape, how it is fitted and how passages fall into it."""

    coarse_clusters: int
    leaf_clusters: int
    kmeans: KMeansSettings
    sample: int
    """Each node is fitted on at most this many passages."""
    seed: int
    searched_nodes: int = 1
    """See :class:`storage_schema.tree.Tree`; earlier releases had this one rule."""
    use_gpu: bool = False

    def __post_init__(self) -> None:
        if self.num_domains > MOST_DOMAINS:
            raise UserError(
                f"{self.coarse_clusters} x {self.leaf_clusters} are {self.num_domains:,} domains; there may be "
                f"{MOST_DOMAINS:,}. Lower coarse_clusters or leaf_clusters."
            )

    @property
    def num_domains(self) -> int:
        return self.coarse_clusters * self.leaf_clusters


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


def fit_tree(
    folders: Folders, parts: Sequence[Path], rows: list[int], settings: TreeSettings, report: Report
) -> tuple[Tree, int]:
    """Fit all centroids, in tasks; also returns how many clusters were split. Kept on disk for a resume.

    Args:
        parts: the parts of passages, in order.
        rows: how many passages each has.
        report: progress in nodes.

    Returns:
        The tree without its counts and distances, which are not known yet.

    Raises:
        ValueError: there are fewer passages than domains, or fewer distinct embeddings (counted only if the root is
            fitted on all of them).
    """
    kept = folders.scratch / "tree.npz"
    if not kept.exists():
        write_arrays(kept, **_fit(folders, parts, rows, settings, report))
    for part in parts:
        folders.sampled(part.stem).unlink(missing_ok=True)
    arrays = read_arrays(kept)
    tree = Tree(
        coarse_CD=arrays["coarse_CD"],
        leaves_KD=arrays["leaves_KD"],
        counts_K=np.zeros(settings.num_domains, np.int64),
        mean_distance_K=np.zeros(settings.num_domains, np.float32),
        searched_nodes=settings.searched_nodes,
    )
    return tree, int(arrays["splits"])


def _fit(
    folders: Folders, parts: Sequence[Path], rows: list[int], settings: TreeSettings, report: Report
) -> dict[str, np.ndarray]:
    check_enough_passages(sum(rows), settings)
    gpus = 1 if settings.use_gpu else 0
    threads = free_cores()
    asked = (folders, share(rows), settings, threads)
    [root] = run_tasks(fit_root, [asked], num_cpus=threads, num_gpus=gpus)
    coarse_CD = root["centroids_kD"]
    shared_CD = share(coarse_CD)
    # All passages where they are no more than all nodes' samples; else the same share of each part.
    wanted = min(sum(rows), settings.coarse_clusters * settings.sample)
    edges = [wanted * end // sum(rows) for end in np.cumsum([0, *rows]).tolist()]
    drawn = [
        (folders, part, end - begin, node_seed(settings.seed, PARTS - number), shared_CD)
        for number, (part, (begin, end)) in enumerate(zip(parts, pairwise(edges), strict=True))
    ]
    sampled_PC = np.stack(run_tasks(sample_part, drawn, weights=rows))
    shared = share(([part.stem for part in parts], sampled_PC))
    nodes = np.flatnonzero(sampled_PC.any(0)).tolist()
    fitted = run_tasks(
        fit_leaves, [(folders, node, shared, settings) for node in nodes], num_gpus=gpus, report=report
    )
    leaves_CkD = np.full((len(coarse_CD), settings.leaf_clusters, coarse_CD.shape[1]), np.nan, np.float32)
    leaves_CkD[nodes] = [fit["centroids_kD"] for fit in fitted]
    return {
        "coarse_CD": coarse_CD,
        "leaves_KD": leaves_CkD.reshape(settings.num_domains, -1),
        "splits": np.sum([fit["splits"] for fit in (root, *fitted)]),
    }


def fit_root(
    folders: Folders, rows: list[int], settings: TreeSettings, threads: int
) -> dict[str, np.ndarray]:
    """Fit the coarse nodes on a sample of all embeddings; returns ``centroids_kD`` and ``splits``. Kept on disk for a
    resume.
    """
    kept = folders.scratch / "root.npz"
    if kept.exists():
        return read_arrays(kept)
    seed = node_seed(settings.seed, ROOT)
    parts = part_files(folders.passages, "train")
    vectors_ND = _sample([partial(_embeddings, folders, part) for part in parts], rows, settings.sample, seed)
    if len(vectors_ND) == sum(rows):
        check_enough_passages(
            len(distinct_rows(vectors_ND)), settings, what="distinct embeddings of passages"
        )
    return _fitted(kept, vectors_ND, settings.coarse_clusters, settings, seed, threads)


def sample_part(folders: Folders, part: Path, number: int, seed: int, coarse_CD: np.ndarray) -> np.ndarray:
    """Write `number` of a part's embeddings, one record batch per coarse node; returns how many each node has."""
    kept = folders.sampled(part.stem)
    if not kept.exists():
        vectors_ND = _embeddings(folders, part)
        vectors_ND = vectors_ND[sample_rows(len(vectors_ND), number, seed)]
        coarse_N, _ = assign(vectors_ND, coarse_CD)
        ordered = pa.array(vectors_ND[np.argsort(coarse_N, kind="stable")].reshape(-1))
        column = pa.FixedSizeListArray.from_arrays(ordered, vectors_ND.shape[1])
        rows_C = np.bincount(coarse_N, minlength=len(coarse_CD))
        write_batch(kept, pa.record_batch([column], names=["embedding"]), rows_C.tolist())
    with pa.memory_map(str(kept)) as source:
        file = pa.ipc.open_file(source)
        return np.array([file.get_batch(node).num_rows for node in range(len(coarse_CD))])


def fit_leaves(
    folders: Folders, node: int, sampled: tuple[list[str], np.ndarray], settings: TreeSettings
) -> dict[str, np.ndarray]:
    """Fit a coarse node's leaves on its rows of the sample; returns ``centroids_kD`` and ``splits``. Kept on disk for a
    resume.

    Args:
        sampled: the names of the parts in order, and how many rows of each node each part's sample has, ``[parts, C]``.
    """
    kept = folders.scratch / f"leaves-{node:05d}.npz"
    if kept.exists():
        return read_arrays(kept)
    rows = sampled[1][:, node]
    # Parts are mapped one at a time: a process may have 65,530 mappings, and a corpus may have more parts.
    readers = [
        partial(_sampled, folders, name, node)
        for name, number in zip(sampled[0], rows, strict=True)
        if number
    ]
    seed = node_seed(settings.seed, node)
    vectors_ND = _sample(readers, rows[rows > 0].tolist(), settings.sample, seed)
    return _fitted(kept, vectors_ND, settings.leaf_clusters, settings, seed, 1)


def _fitted(
    kept: Path, vectors_ND: np.ndarray, clusters: int, settings: TreeSettings, seed: int, threads: int
) -> dict[str, np.ndarray]:
    fit = fit_node(
        vectors_ND, clusters, settings.kmeans, seed=seed, threads=threads, use_gpu=settings.use_gpu
    )
    arrays = {"centroids_kD": fit.centroids_kD, "splits": np.array(fit.splits)}
    write_arrays(kept, **arrays)
    return arrays


def _embeddings(folders: Folders, part: Path) -> np.ndarray:
    return read_embeddings(Path(folders.embeddings) / part.with_suffix(".arrow").name)[1]


def _sampled(folders: Folders, name: str, node: int) -> np.ndarray:
    return embeddings_of(read_node(folders.sampled(name), node))


def _sample(
    readers: Sequence[Callable[[], np.ndarray]], rows: Sequence[int], limit: int, seed: int
) -> np.ndarray:
    """At most `limit` of the vectors, drawn alike from all that the readers return, in their order."""
    edges = np.cumsum([0, *rows])
    wanted = sample_rows(int(edges[-1]), limit, seed)
    cuts = pairwise(np.searchsorted(wanted, edges).tolist())
    return np.concatenate(
        [
            read()[wanted[begin:end] - first]
            for read, first, (begin, end) in zip(readers, edges, cuts, strict=False)
            if begin < end
        ]
    )
