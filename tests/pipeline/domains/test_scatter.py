"""A part's rows at their coarse nodes."""

from __future__ import annotations

import os

import numpy as np
import polars as pl
import pytest

from pipeline.domains.scatter import Folders, scatter_part
from storage_schema.corpus import part_files
from tests.pipeline.planted_store import LANGUAGES, linked


def test_no_part_lists_a_folder(planted, tmp_path, monkeypatch):
    """As many parts as tasks: listings would grow with the square."""
    folder = linked(planted, tmp_path)
    paths = {name: str(folder / name) for name in ("passages", "embeddings", "tokenizer")}
    folders = Folders(**paths, work=str(tmp_path))
    folders.scratch.mkdir()
    [part, *_] = part_files(folder / "passages", "train")
    coarse_CD = np.eye(LANGUAGES, 64, dtype=np.float32)
    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, lambda *_: pytest.fail("it lists a folder"))
    rows_C = scatter_part(folders, part, coarse_CD)["rows_C"]
    assert scatter_part(folders, part, coarse_CD)["rows_C"].tolist() == rows_C.tolist()  # it is done
    monkeypatch.undo()
    assert rows_C.sum() == len(pl.read_parquet(part))
