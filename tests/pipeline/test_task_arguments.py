"""The arguments of a task are as large for ten files as for ten thousand: else all tasks' grow with the square."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from pipeline.corpus import large_files
from pipeline.corpus.accounts import Tally
from pipeline.corpus.documents import Corpus, CorpusFile
from pipeline.domains import build as domains
from pipeline.domains import fitting
from pipeline.domains.fitting import TreeSettings
from pipeline.domains.scatter import Folders
from pipeline.passages import build as passages
from pipeline.passages.parts import parts_of_split
from pipeline.passages.selection import SelectedPassages, Selection
from pipeline.tree.kmeans import KMeansSettings
from storage_schema.stage import open_stage
from storage_schema.tree import Tree

FEW, MANY = 10, 10_000


class Enough(Exception):
    """The arguments of the last kind of task were seen."""


@pytest.fixture
def recorded(monkeypatch):
    """No task runs. Of each kind the bytes of the arguments of every task; what is shared counts as its reference."""
    found: dict[str, list[int]] = {}
    results = {
        "extract_group": Tally(documents=1),
        "count_line_ends": (1, 0),
        "scatter_part": {"rows_C": np.ones(2, np.int64), "squared": 0.0},
    }

    def run_tasks(function, arguments, **_):
        name = function.__name__
        found[name] = [len(pickle.dumps(one)) for one in arguments]
        if name in ("write_part", "write_node", "fit_root"):
            raise Enough
        if name == "count_line_ends":
            return [(1, start) for _, _, start, _ in arguments]
        return [results.get(name)] * len(arguments)

    for module in (passages, large_files, domains, fitting):
        monkeypatch.setattr(module, "run_tasks", run_tasks)
    for module in (domains, fitting):
        monkeypatch.setattr(module, "share", lambda value: b"a reference")
    return found


def corpus_of(number, size):
    """A corpus that is only listed, with as many kinds of files that are not read."""
    files = [
        CorpusFile(
            path=f"/data/corpus/{n:08d}.jsonl",
            name=f"{n:08d}.jsonl",
            source="corpus",
            format="lines",
            compression=None,
            bytes=size,
            modified=n,
        )
        for n in range(number)
    ]
    return Corpus(uri="/data/corpus", files=tuple(files), not_read={f".{n:08d}": 1 for n in range(number)})


@pytest.mark.parametrize(
    ("size", "many", "tasks"),
    [(100, MANY, 20), (passages.GROUP_BYTES, MANY, MANY), (3 * passages.GROUP_BYTES, 2000, 6000)],
    ids=["500 per task", "1 per task", "1/3 per task"],
)
def test_of_tasks_that_read_a_corpus(recorded, tmp_path, monkeypatch, size, many, tasks):
    def selected(tally, corpus, shards, *_):
        """Two rows of each shard are kept."""
        decided, edges = np.ones(2 * len(shards), np.uint8), 2 * np.arange(len(shards) + 1)
        parts = list(parts_of_split("train", decided, edges, 0))
        return SelectedPassages(
            parts=parts, decisions=tmp_path / "decisions", sources=None, counts={}, documents={}
        )

    monkeypatch.setattr(passages, "_select", selected)
    largest = {}
    for number in (FEW, many):
        stage = open_stage(tmp_path / f"{number:05d}", kind="passages", configuration={}, inputs={})
        with pytest.raises(Enough):
            passages.build_passages(
                stage, corpus_of(number, size), Selection(), passage_characters=99, max_bad_documents=0
            )
        largest[number] = {name: max(sizes) for name, sizes in recorded.items() if sizes}
    assert len(recorded["extract_group"]) == tasks
    files_per_task = max(1, many // tasks)
    assert largest[many]["extract_group"] < 1000 + 100 * files_per_task
    assert largest[many].get("count_line_ends", 0) <= largest[FEW].get("count_line_ends", 0) + 16
    # A part of a bounded number of rows takes them from a bounded number of shards.
    assert sum(recorded["write_part"]) < 200 * tasks + 1000 * len(recorded["write_part"])


def test_of_the_task_that_fits_the_root(recorded, tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "free_cores", lambda: 2)
    settings = TreeSettings(coarse_clusters=2, leaf_clusters=2, kmeans=KMeansSettings(), sample=9, seed=0)
    folders = Folders(passages="p", embeddings="e", tokenizer="t", work=str(tmp_path))
    folders.scratch.mkdir()
    sizes = []
    for number in (FEW, MANY):
        with pytest.raises(Enough):
            fitting.fit_tree(
                folders, [Path("part")] * number, [4000] * number, settings, lambda done, total: None
            )
        sizes.append(recorded["fit_root"])
    assert sizes[0] == sizes[1]


def test_of_tasks_that_write_domains(recorded, tmp_path, monkeypatch):
    k, size = 2, 4
    leaves_KD = np.ones((2 * k, size), np.float32)
    tree = Tree(
        coarse_CD=np.ones((2, size), np.float32),
        leaves_KD=leaves_KD,
        counts_K=np.ones(2 * k, np.int64),
        mean_distance_K=np.ones(2 * k, np.float32),
    )
    settings = TreeSettings(coarse_clusters=2, leaf_clusters=k, kmeans=KMeansSettings(), sample=9, seed=0)
    monkeypatch.setattr(domains, "rows_of", lambda parts: [2] * len(parts))
    largest = {}
    for number in (FEW, MANY):
        parts = [Path(f"/data/store/passages/train/part-{n:05d}.parquet") for n in range(number)]
        monkeypatch.setattr(domains, "part_files", lambda folder, split, parts=parts: parts)
        stage = open_stage(tmp_path / f"{number:05d}", kind="domains", configuration={}, inputs={})
        folders = Folders(passages="p", embeddings="e", tokenizer="t", work=str(stage.work))
        with pytest.raises(Enough):
            domains.build_domains(stage, folders, settings, tree=tree)
        largest[number] = {name: max(sizes) for name, sizes in recorded.items()}
        assert len(recorded["scatter_part"]) == number
    assert largest[MANY] == largest[FEW] and set(largest[FEW]) == {"scatter_part", "write_node"}
