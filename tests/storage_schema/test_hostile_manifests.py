"""Manifests, stamps, locks and the files that they name, meaning harm: one error that names the file, nothing else."""

import os
from dataclasses import replace

import pytest

from storage_schema.json_files import read_json
from storage_schema.lock import LOCK, only_writer
from storage_schema.manifest import StoreError, read_manifest, verify_files
from storage_schema.stage import open_stage
from storage_schema.verified import STAMP, verify_once
from tests.hostile import JSON, forged


@pytest.fixture
def stage(tmp_path):
    opened = open_stage(tmp_path / "s", kind="passages", configuration={}, inputs={})
    (opened.work / "a.bin").write_bytes(b"content")
    opened.finish({})
    return opened


@pytest.mark.parametrize("content", JSON.values(), ids=JSON)
def test_a_manifest_of_harmful_json(stage, content):
    (stage.folder / "manifest.json").write_bytes(content)
    with pytest.raises(StoreError, match="s/manifest.json is not a manifest"):
        read_manifest(stage.folder, "passages")


@pytest.mark.parametrize("content", JSON.values(), ids=JSON)
def test_stamp_plan_and_lock_of_harmful_json_count_for_nothing(stage, content):
    (stage.folder / STAMP).write_bytes(content)
    verify_once(stage.folder, stage.finished)
    work = open_stage(stage.folder.with_name("t"), kind="passages", configuration={}, inputs={}).work
    (work / "plan.json").write_bytes(content)
    open_stage(stage.folder.with_name("t"), kind="passages", configuration={}, inputs={})
    with only_writer(stage.folder):
        (stage.folder / LOCK).write_bytes(content)
        with pytest.raises((StoreError, UnicodeDecodeError), match="another process|utf-8"):
            with only_writer(stage.folder):
                pass


def test_a_stamp_of_the_right_digest_and_a_wrong_shape_counts_for_nothing(stage):
    (stage.folder / STAMP).write_text(f'{{"digest": "{stage.finished.digest}", "files": [1]}}')
    verify_once(stage.folder, stage.finished)


@pytest.mark.parametrize(
    "path",
    [
        "../a.bin",
        "/etc/passwd",
        "a/../../b",
        "./a.bin",
        "a//b",
        "",
        ".",
        "..",
        "a\0b",
        "a\nb",
        "\ud800",
        7,
        None,
    ],
)
def test_a_name_that_leads_out_of_the_folder(stage, path):
    entry = {"path": path, "bytes": 7, "sha256": "0" * 64}
    (stage.folder / "manifest.json").write_text(forged(stage.finished, files=[entry]))
    with pytest.raises(
        StoreError, match="s/manifest.json is not a manifest.*not the path of a file in the folder"
    ):
        read_manifest(stage.folder, "passages")


@pytest.mark.parametrize(
    "changes",
    [
        {"files": [{"path": "a", "bytes": -1, "sha256": "0" * 64}]},
        {"files": [{"path": "a", "bytes": 1e9, "sha256": "0" * 64}]},
        {"files": [{"path": "a", "bytes": True, "sha256": "0" * 64}]},
        {"files": [{"path": "a", "bytes": 1, "sha256": "../" * 10}]},
        {"configuration": []},
        {"inputs": [["tree", "x"]]},
        {"counts": None},
        {"seconds": "long"},
        {"more": 1},
    ],
)
def test_a_manifest_of_wrong_types(stage, changes):
    (stage.folder / "manifest.json").write_text(forged(stage.finished, **changes))
    with pytest.raises(StoreError, match="s/manifest.json is not a manifest"):
        read_manifest(stage.folder, "passages")


def test_links_give_no_other_bytes_and_pipes_are_not_waited_for(stage, tmp_path):
    secret, listed = tmp_path / "secret", stage.folder / "a.bin"
    secret.write_bytes(b"secrets")
    listed.unlink()
    listed.symlink_to(secret)
    with pytest.raises(StoreError, match="a.bin was altered"):
        verify_files(stage.folder, stage.finished)
    for put in (os.mkfifo, lambda path: path.symlink_to("/dev/zero"), os.mkdir):
        listed.unlink()
        put(listed)
        unsized = replace(stage.finished, files=(replace(stage.finished.files[0], bytes=0),))
        with pytest.raises(StoreError, match="a.bin is not a regular file"):
            verify_files(stage.folder, unsized)
    (stage.folder / "manifest.json").unlink()
    os.mkfifo(stage.folder / "manifest.json")
    with pytest.raises(StoreError, match="manifest.json is not a regular file"):
        read_manifest(stage.folder, "passages")
    assert secret.read_bytes() == b"secrets"


def test_json_names_the_file_the_value_and_the_bound(tmp_path):
    for content, said in (
        (b"[" * 500 + b"]" * 500, "deeper than 100 levels"),
        (JSON["a key twice"], "'step' twice"),
    ):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(ValueError, match=f"a.json.*{said}"):
            read_json(tmp_path / "a.json")
