"""Stages: written last, verified, refused when they do not fit, and never half there."""

import json
import os
import threading

import pytest

from storage_schema import stage as stages
from storage_schema.manifest import StoreError, read_manifest, verify_files
from storage_schema.stage import open_stage


def build(folder, configuration=None, **options):
    stage = open_stage(folder, kind="passages", configuration=configuration or {"n": 1}, inputs={}, **options)
    if stage.finished is None:
        (stage.work / "part").mkdir(exist_ok=True)
        (stage.work / "part" / "a.bin").write_bytes(b"content")
        stage.finish({"rows": 3})
    return stage


def test_a_finished_stage_is_skipped_and_verified(tmp_path):
    first = build(tmp_path / "s").finished
    again = open_stage(tmp_path / "s", kind="passages", configuration={"n": 1}, inputs={})
    assert again.finished is not None and again.finished.digest == first.digest
    assert [f.path for f in first.files] == ["part/a.bin"]
    verify_files(tmp_path / "s", first)


@pytest.mark.parametrize("damage", ["gone", "cut off"])
def test_a_finished_stage_that_lacks_something_is_built_again(tmp_path, damage):
    first = build(tmp_path / "s").finished
    part = tmp_path / "s/part/a.bin"
    part.unlink() if damage == "gone" else part.write_bytes(b"cont")
    again = open_stage(tmp_path / "s", kind="passages", configuration={"n": 1}, inputs={})
    assert again.finished is None and str(part) in again.damage
    assert build(tmp_path / "s").finished.digest == first.digest
    assert open_stage(tmp_path / "s", kind="passages", configuration={"n": 1}, inputs={}).damage is None


def test_other_settings_are_refused_and_named(tmp_path):
    build(tmp_path / "s")
    with pytest.raises(StoreError, match="n was 1, now 2"):
        build(tmp_path / "s", {"n": 2})
    assert read_manifest(tmp_path / "s", "passages").counts == {"rows": 3}
    rebuilt = build(tmp_path / "s", {"n": 2}, rebuild=True)
    assert read_manifest(tmp_path / "s", "passages").configuration == {"n": 2} == rebuilt.configuration


def test_unfinished_work_is_kept_for_the_same_settings_only(tmp_path):
    stage = open_stage(tmp_path / "s", kind="passages", configuration={"n": 1}, inputs={})
    (stage.work / "half").write_bytes(b"x")
    with pytest.raises(StoreError, match="no passages at"):
        read_manifest(tmp_path / "s", "passages")
    assert (
        open_stage(tmp_path / "s", kind="passages", configuration={"n": 1}, inputs={}).work / "half"
    ).exists()
    assert not (
        open_stage(tmp_path / "s", kind="passages", configuration={"n": 2}, inputs={}).work / "half"
    ).exists()


def test_removing_unfinished_work_may_be_cut_off(tmp_path, monkeypatch):
    stage = open_stage(tmp_path / "s", kind="passages", configuration={"n": 1}, inputs={})
    (stage.work / "half").write_bytes(b"x")

    def killed(path, **_):
        if path.exists():
            (path / "plan.json").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("shutil.rmtree", killed)
        open_stage(tmp_path / "s", kind="passages", configuration={"n": 2}, inputs={})
    build(tmp_path / "s", {"n": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_removing_a_replaced_stage_may_be_cut_off(tmp_path, monkeypatch):
    build(tmp_path / "s")

    def killed(path, **_):
        if path.exists() and "replaced" in path.name:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("shutil.rmtree", killed)
        build(tmp_path / "s", {"n": 2}, rebuild=True)
    assert len(list(tmp_path.iterdir())) == 2
    assert build(tmp_path / "s", {"n": 2}).finished.configuration == {"n": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, "schema version 99, written by 'soup-of-experts"),
        ({"counts": {"rows": 4}}, "was altered"),
        ({"kind": "domains"}, "holds a domains, not a passages"),
    ],
)
def test_a_foreign_manifest_is_refused(tmp_path, change, message):
    build(tmp_path / "s")
    path = tmp_path / "s" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(StoreError, match=message):
        read_manifest(tmp_path / "s", "passages")


@pytest.mark.parametrize(
    ("data", "message"),
    [(None, "is missing"), (b"short", "has 5 bytes"), (b"CONTENT", "sha256 differs")],
)
def test_changed_files_are_named(tmp_path, data, message):
    manifest = build(tmp_path / "s").finished
    path = tmp_path / "s" / "part" / "a.bin"
    path.unlink() if data is None else path.write_bytes(data)
    with pytest.raises(StoreError, match=f"a.bin.*{message}"):
        verify_files(tmp_path / "s", manifest)


@pytest.mark.parametrize("renames_done", [0, 1])
def test_a_crash_between_manifest_and_rename_loses_nothing(tmp_path, monkeypatch, renames_done):
    build(tmp_path / "s")
    rename, done = os.rename, []

    def killed(source, target):
        if len(done) == renames_done:
            raise KeyboardInterrupt
        done.append(target)
        rename(source, target)

    monkeypatch.setattr("os.rename", killed)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "s", {"n": 2}, rebuild=True)
    monkeypatch.undo()
    expected = {"n": 1} if renames_done == 0 else {"n": 2}
    assert build(tmp_path / "s", expected).finished.configuration == expected
    verify_files(tmp_path / "s", read_manifest(tmp_path / "s", "passages"))


def test_scratch_is_no_part_of_the_stage_and_stays_until_the_manifest_is_on_disk(tmp_path, monkeypatch):
    stage = open_stage(tmp_path / "s", kind="passages", configuration={}, inputs={})
    stage.scratch.mkdir()
    for path in (stage.scratch / "step.bin", stage.work / "a.bin"):
        path.write_bytes(b"work of an hour")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("storage_schema.stage.write_atomically", killed)  # while the manifest is written
    with pytest.raises(KeyboardInterrupt):
        stage.finish({})
    monkeypatch.undo()
    stage = open_stage(tmp_path / "s", kind="passages", configuration={}, inputs={})
    assert (stage.scratch / "step.bin").exists()
    assert [file.path for file in stage.finish({}).files] == ["a.bin"]
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["a.bin", "manifest.json"]


def test_a_rebuild_that_was_killed_before_the_rename_is_whole(tmp_path, monkeypatch):
    build(tmp_path / "s")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.rename", killed)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "s", {"n": 2}, rebuild=True)
    monkeypatch.undo()
    again = open_stage(tmp_path / "s", kind="passages", configuration={"n": 2}, inputs={}, rebuild=True)
    assert again.finished is not None and again.finished.configuration == {"n": 2}
    verify_files(tmp_path / "s", again.finished)


def test_files_are_hashed_side_by_side(tmp_path, monkeypatch):
    stage = open_stage(tmp_path / "s", kind="passages", configuration={}, inputs={})
    for number in range(2):
        (stage.work / f"{number}.bin").write_bytes(bytes(100))
    both = threading.Barrier(2)
    real = stages.file_digest
    monkeypatch.setattr(stages, "file_digest", lambda path: (both.wait(10), real(path))[1])
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert len(stage.finish({}).files) == 2


@pytest.mark.parametrize("bytes_at_once", [250, 1 << 30])
def test_many_bytes_are_hashed_by_tasks_and_the_manifest_is_the_same(tmp_path, monkeypatch, bytes_at_once):
    monkeypatch.setattr(stages, "HASHED_AT_ONCE", bytes_at_once)
    asked = []

    def run(function, arguments):
        asked.extend(names for _, names in arguments)
        return [function(*some) for some in arguments]

    found = {}
    for name, tasks in (("here", None), ("in tasks", run)):
        stage = open_stage(tmp_path / name, kind="passages", configuration={}, inputs={})
        for number in range(5):
            (stage.work / f"{number}.bin").write_bytes(bytes([number]) * 100)
        found[name] = stage.finish({}, run=tasks)
    assert found["here"].digest == found["in tasks"].digest and len(found["here"].files) == 5
    grouped = [["0.bin", "1.bin"], ["2.bin", "3.bin"], ["4.bin"]]
    assert asked == (grouped if bytes_at_once == 250 else [])
