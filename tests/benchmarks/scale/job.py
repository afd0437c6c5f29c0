"""One cell, in a process and a Ray session of its own: builds what the cell asks for, and writes its figures."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import ray

import pipeline.corpus.large_files
import pipeline.domains.build
import pipeline.domains.fitting
import pipeline.passages.build
from flows.cluster import session
from pipeline.corpus.documents import Corpus
from pipeline.corpus.listing import open_corpus
from pipeline.domains.build import build_domains
from pipeline.domains.fitting import TreeSettings
from pipeline.domains.scatter import Folders
from pipeline.embeddings import build as embedding
from pipeline.embeddings.build import build_embeddings
from pipeline.embeddings.embedder import DEFAULT, find_embedder, load_embedder
from pipeline.passages.build import build_passages
from pipeline.passages.selection import Selection
from pipeline.tasks import run_tasks
from pipeline.tokenizer import build_tokenizer
from pipeline.tree.kmeans import KMeansSettings
from storage_schema.corpus import SPLITS, part_files
from storage_schema.domains import DomainStore
from storage_schema.layout import additions_folder, store_and_additions
from storage_schema.stage import Stage, open_stage
from tests.benchmarks.scale.inputs import embed_part, write_corpus
from tests.benchmarks.scale.sizes import Cell
from tests.benchmarks.scale.watching import Watch

LIST, PIECES, CUT, DUPLICATES, OVERLAP, PARTS = "list", "pieces", "cut", "duplicates", "overlap", "parts"
SAMPLE, TRAIN, EMBED, TREE = "tokenizer sample", "tokenizer training", "synthetic embeddings", "tree"
ENCODER = "encoder"
SCATTER, LEAVES, HASH = "assign and scatter", "leaves and partitions", "manifest"
DRIVER = "driver"
"""What the driver does between tasks, while passages and domains are built."""
STAGE_OF_TASKS = {
    "count_line_ends": PIECES,
    "row_groups": PIECES,
    "extract_group": CUT,
    "lowest_orders": DUPLICATES,
    "deal_shards": DUPLICATES,
    "deal_present": DUPLICATES,
    "decide_bucket": DUPLICATES,
    "count_kept": DUPLICATES,
    "_write_runs": OVERLAP,
    "_merge_runs": OVERLAP,
    "_write_seen": OVERLAP,
    "_merge_seen": OVERLAP,
    "rows_mostly_in": OVERLAP,
    "write_part": PARTS,
    "lengths_of_documents": SAMPLE,
    "write_texts": SAMPLE,
    "train_on_sample": TRAIN,
    "embed_part": EMBED,
    "fit_root": TREE,
    "sample_part": TREE,
    "fit_leaves": TREE,
    "scatter_part": SCATTER,
    "write_node": LEAVES,
    "hashed_files": HASH,
}
BUILDERS: list[Any] = [
    pipeline.corpus.large_files,
    pipeline.passages.build,
    pipeline.domains.build,
    pipeline.domains.fitting,
]
"""The modules whose tasks are watched; those of the passages are run by their builder."""
WARM_SECONDS = 5
VOCAB_SIZE = 4096
EMPTY_TASKS = 1_000


def run(cell: Cell, folder: Path) -> dict[str, Any]:
    """Run one cell in `folder`, or go on with it; returns its figures, of what was still to do."""
    watch = Watch(folder)
    written = write_corpus(folder / "corpus", cell.passages, cell.files)
    session.connect()
    _watch_pipeline(watch)
    watch.start()
    run_tasks(warm, [()] * int(ray.cluster_resources()["CPU"]))
    begun = time.monotonic()
    run_tasks(nothing, [()] * EMPTY_TASKS)
    of_a_task = (time.monotonic() - begun) / EMPTY_TASKS
    builder = Builder(cell, watch, folder / "store")
    builder.passages(folder / "corpus", folder / "store")
    if cell.kind == "encoder":
        builder.encode()
    elif cell.kind != "corpus":
        builder.tokenizer()
        builder.embeddings_and_domains(folder / "store")
    figures = {"stages": watch.record(), "stored": dict(builder.stored), "seconds_of_a_task": of_a_task}
    figures["most_disk_bytes"] = watch.most_disk_bytes
    additions = [builder.addition(folder, number) for number in range(1, cell.additions + 1)]
    watch.stop()
    return {"cell": cell.record(), "bytes": written, **figures, "additions": additions}


def warm() -> None:
    """Import what the tasks of all stages need: that takes a worker seconds once, and says nothing about growth.

    The sleep lets every worker have one of these tasks.
    """
    import faiss
    import scipy.sparse
    import torch

    time.sleep(WARM_SECONDS if faiss and scipy.sparse and torch else 0)


def nothing() -> None:
    """A task's own cost."""


def _watch_pipeline(watch: Watch) -> None:
    """Put the watched functions in the place of the pipeline's own, in this process."""
    tasks = watch.tasks(run_tasks, STAGE_OF_TASKS)
    for module in BUILDERS:
        module.run_tasks = tasks
    stage: Any = Stage
    stage.finish = watch.watched(HASH, stage.finish)


class Builder:
    """Builds a store stage by stage, and counts the files of each stage just before its manifest is written."""

    def __init__(self, cell: Cell, watch: Watch, store: Path):
        self.cell, self.watch, self.store = cell, watch, store
        self.stored: dict[str, dict[str, int]] = {}
        self.tasks = watch.tasks(run_tasks, STAGE_OF_TASKS)

    def passages(self, uri: Path, volume: Path) -> None:
        with self.watch.stage(LIST):
            corpus: Corpus = open_corpus(str(uri))
        before = store_and_additions(self.store) if volume != self.store else []
        present = [
            part
            for old in before
            if old != volume
            for split in SPLITS
            for part in part_files(old / "passages", split)
        ]
        stage = self._open(volume, "passages")
        if stage.finished is None:
            with self.watch.stage(DRIVER):
                build_passages(
                    stage, corpus, Selection(), passage_characters=2000, max_bad_documents=0, present=present
                )
        self._count(stage)

    def tokenizer(self) -> None:
        stage = self._open(self.store, "tokenizer")
        if stage.finished is None:
            with self.watch.stage(TRAIN):
                build_tokenizer(
                    stage,
                    self.store / "passages",
                    vocab_size=VOCAB_SIZE,
                    sample_characters=self.cell.characters,
                    run=self.tasks,
                )
        self._count(stage)

    def encode(self) -> None:
        """Embed by the default model, as a large store does: in tasks that cut words and actors that hold the model."""
        weights = find_embedder(DEFAULT)
        model = load_embedder(weights, max_seq_length=256)
        embedding.FEW = 0
        stage = self._open(self.store, "embeddings")
        if stage.finished is None:
            with self.watch.stage(ENCODER):
                build_embeddings(stage, self.store / "passages", weights, model, max_seq_length=256)
        self._count(stage)

    def embeddings_and_domains(self, volume: Path) -> None:
        stage = self._open(volume, "embeddings")
        parts = part_files(volume / "passages", "train")
        targets = [stage.work / part.with_suffix(".arrow").name for part in parts]
        if stage.finished is None:
            self.tasks(
                embed_part, [(str(part), str(target)) for part, target in zip(parts, targets, strict=True)]
            )
            stage.finish({})
        self._count(stage)
        stage = self._open(volume, "domains")
        settings = TreeSettings(
            coarse_clusters=self.cell.clusters,
            leaf_clusters=self.cell.clusters,
            kmeans=KMeansSettings(),
            sample=self.cell.sample,
            seed=0,
            searched_nodes=4,
        )
        folders = Folders(
            passages=str(volume / "passages"),
            embeddings=str(volume / "embeddings"),
            tokenizer=str(self.store / "tokenizer"),
            work=str(stage.work),
        )
        tree = DomainStore(self.store, num_volumes=1).tree if volume != self.store else None
        if stage.finished is None:
            with self.watch.stage(DRIVER):
                build_domains(stage, folders, settings, tree=tree)
        self._count(stage)

    def addition(self, folder: Path, number: int) -> dict[str, Any]:
        """Make an addition; returns its seconds, and its figures by stage."""
        corpus = folder / f"corpus-{number}"
        write_corpus(corpus, self.cell.added, 1, first=number * 10**8)
        volume = additions_folder(self.store) / f"{number:04d}"
        self.watch.stages = {}
        begun = time.monotonic()
        self.passages(corpus, volume)
        self.embeddings_and_domains(volume)
        return {"seconds": time.monotonic() - begun, "stages": self.watch.record()}

    def _open(self, volume: Path, kind: str) -> Stage:
        volume.mkdir(parents=True, exist_ok=True)
        vocabulary = {"vocab_size": VOCAB_SIZE, "end_of_text": 0}
        return open_stage(volume / kind, kind=kind, configuration=vocabulary, inputs={})

    def _count(self, stage: Stage) -> None:
        sizes = [path.stat().st_size for path in stage.folder.rglob("*") if path.is_file()]
        self.stored[stage.kind] = {"files": len(sizes), "bytes": sum(sizes)}
