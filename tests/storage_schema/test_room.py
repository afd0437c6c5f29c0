"""A disk without room is named before anything is written."""

from __future__ import annotations

import shutil
from collections import namedtuple

import pytest

from storage_schema.room import bytes_below, require_room

Usage = namedtuple("Usage", "total used free")


def test_room_is_asked_of_the_nearest_folder_that_is_there(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or Usage(10, 5, 5_000_000_000))
    folder = tmp_path / "not" / "yet"
    require_room(folder, 5e9, what="the run", way_out="take fewer")
    with pytest.raises(ValueError) as refused:
        require_room(folder, 5.5e9, what="the run", way_out="take fewer")
    assert asked == [tmp_path, tmp_path]
    assert str(refused.value) == (
        f"the run takes about 5.5 GB and the disk of {folder} has 5 GB free. Free some, or take fewer."
    )


def test_bytes_below_counts_every_file(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/c").write_bytes(b"123")
    (tmp_path / "d").write_bytes(b"45")
    assert bytes_below(tmp_path) == 5
    assert bytes_below(tmp_path / "none") == 0
