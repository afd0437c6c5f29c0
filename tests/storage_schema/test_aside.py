"""A file is whole under its name, even if two write it at once or a writer dies."""

import os
import threading

import pytest

from storage_schema.aside import written_aside
from storage_schema.manifest import write_atomically
from storage_schema.stage import open_stage


def stage_at(folder):
    return open_stage(folder, kind="passages", configuration={}, inputs={})


def test_two_writers_of_one_name_do_not_meet(tmp_path):
    """Of one process too: a pid alone is no name, and containers that share a folder have equal ones."""
    path, begun = tmp_path / "file", threading.Barrier(2)

    def pieces(letter):
        yield letter * 1000
        begun.wait(10)  # both are in the middle
        yield letter * 1000

    writers = [threading.Thread(target=write_atomically, args=(path, pieces(x))) for x in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert path.read_text() in ("a" * 2000, "b" * 2000)
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_what_fails_leaves_the_old_content_and_nothing_else(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(KeyboardInterrupt), written_aside(tmp_path / "file") as aside:
        aside.write_text("half")
        raise KeyboardInterrupt
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("file", "old")]


def test_a_file_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("renamed"), replace(a, b)))
    with written_aside(tmp_path / "file") as aside:
        aside.write_bytes(b"x")
    assert calls == [str(aside), "renamed"]


def test_what_killed_writers_left_goes_before_the_stage_is_built_on(tmp_path):
    left = stage_at(tmp_path / "s").work / "train" / ".part-00000.parquet.0123456789ab.aside"
    left.parent.mkdir()
    left.write_bytes(b"half")
    stage = stage_at(tmp_path / "s")
    assert not left.exists()
    left.write_bytes(b"half")  # by a task that was taken for dead
    stage.finish({})
    assert not list((tmp_path / "s").rglob("*.aside"))
