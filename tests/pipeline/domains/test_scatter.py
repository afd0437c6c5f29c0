"""A part's rows at their coarse nodes."""

from __future__ import annotations

import os

import numpy as np
import polars as pl
import pytest

from pipeline.domains.scatter import Folders, scatter_part
from storage_schema.corpus import part_files
from storage_schema.tree import Tree
from tests.pipeline.planted_store import LANGUAGES, linked


def test_no_part_lists_a_folder(planted, tmp_path, monkeypatch):
    """As many parts as tasks: listings would grow with the square."""
    folder = linked(planted, tmp_path)
    paths = {name: str(folder / name) for name in ("passages", "embeddings", "tokenizer")}
    folders = Folders(**paths, work=str(tmp_path))
    folders.scratch.mkdir()
    [part, *_] = part_files(folder / "passages", "train")
    centroids_KD, none = np.eye(LANGUAGES, 64, dtype=np.float32), np.zeros(LANGUAGES)
    tree = Tree(coarse_CD=centroids_KD, leaves_KD=centroids_KD, counts_K=none, mean_distance_K=none)
    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, lambda *_: pytest.fail("it lists a folder"))
    rows_C = scatter_part(folders, part, tree)["rows_C"]
    assert scatter_part(folders, part, tree)["rows_C"].tolist() == rows_C.tolist()  # it is done
    monkeypatch.undo()
    assert rows_C.sum() == len(pl.read_parquet(part))
