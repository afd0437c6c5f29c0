"""The tree that is fitted on a sample of the embeddings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.domains import fitting
from pipeline.domains.fitting import fit_tree
from pipeline.domains.scatter import Folders, read_node
from pipeline.tasks import ignore_progress
from storage_schema.corpus import part_files
from tests.pipeline.planted_store import TREE, linked


@pytest.fixture
def here(monkeypatch):
    """Tasks run in this process."""
    monkeypatch.setattr(fitting, "run_tasks", lambda task, arguments, **_: [task(*one) for one in arguments])
    monkeypatch.setattr(fitting, "share", lambda value: value)


def folders_of(planted, folder):
    folder.mkdir()
    linked(planted, folder)
    paths = {name: str(folder / name) for name in ("passages", "embeddings", "tokenizer")}
    folders = Folders(**paths, work=str(folder))
    folders.scratch.mkdir()
    parts = part_files(folder / "passages", "train")
    return folders, parts, [pq.read_metadata(part).num_rows for part in parts]


def test_what_was_sampled_and_fitted_before_a_crash_is_kept(planted, tmp_path, here, monkeypatch):
    folders, parts, rows = folders_of(planted, tmp_path / "undisturbed")
    undisturbed, splits = fit_tree(folders, parts, rows, TREE, ignore_progress)
    folders, parts, rows = folders_of(planted, tmp_path / "killed")
    written, real = [], fitting.write_arrays

    def crash(path, **arrays):
        written.append(path.name)
        if path.name == "leaves-00002.npz":
            raise RuntimeError("killed")
        real(path, **arrays)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(fitting, "write_arrays", crash)
        fit_tree(folders, parts, rows, TREE, ignore_progress)
    assert written == ["root.npz", *(f"leaves-{node:05d}.npz" for node in range(3))]
    monkeypatch.setattr(
        fitting, "write_arrays", lambda path, **arrays: [written.append(path.name), real(path, **arrays)]
    )
    monkeypatch.setattr(fitting, "write_batch", lambda *_: pytest.fail("a part was sampled again"))
    tree, splits_then = fit_tree(folders, parts, rows, TREE, ignore_progress)
    assert written[4:] == ["leaves-00002.npz", "leaves-00003.npz", "tree.npz"]
    assert np.array_equal(tree.leaves_KD, undisturbed.leaves_KD) and splits_then == splits
    assert not [*folders.scratch.glob("sampled-*")]  # they are needed no more
    monkeypatch.setattr(fitting, "run_tasks", lambda *_, **__: pytest.fail("it was fitted again"))
    assert np.array_equal(fit_tree(folders, parts, rows, TREE, ignore_progress)[0].leaves_KD, tree.leaves_KD)


def test_each_part_gives_its_share_of_the_sample(planted, tmp_path, here, monkeypatch):
    folders, parts, rows = folders_of(planted, tmp_path / "few")
    settings = replace(TREE, sample=30)
    monkeypatch.setattr(fitting, "fit_leaves", lambda *_: pytest.fail("enough"))
    with pytest.raises(pytest.fail.Exception, match="enough"):
        fit_tree(folders, parts, rows, settings, ignore_progress)
    rows = np.array(rows)
    drawn = [
        sum(len(read_node(folders.sampled(part.stem), node)) for node in range(settings.coarse_clusters))
        for part in parts
    ]
    assert len(parts) > 0 and sum(drawn) == 4 * 30 < rows.sum()
    assert np.abs(np.array(drawn) - 4 * 30 * rows / rows.sum()).max() < 1


def test_more_domains_than_were_tried_are_refused():
    with pytest.raises(ValueError, match=r"1024 x 1024 are 1,048,576 domains; there may be 200,000"):
        replace(TREE, coarse_clusters=1024, leaf_clusters=1024)
