"""A newer schema is refused before anything else is read of it, with the release that wrote it and the way out."""

import json
import tomllib
from pathlib import Path

import pytest

from storage_schema.manifest import StoreError, read_manifest
from storage_schema.stage import open_stage
from storage_schema.versions import RELEASE, SCHEMA_VERSION, WRITTEN_BY, version_problem
from tests.storage_schema.test_manifest import build

NEWER = {"schema_version": SCHEMA_VERSION + 1, "written_by": "soup-of-experts 7.2.0"}


def test_the_release_is_the_packages():
    body = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))
    assert body["project"]["version"] == RELEASE


def test_a_newer_manifest_says_who_wrote_it_and_what_to_install(tmp_path):
    build(tmp_path / "s")
    path = tmp_path / "s" / "manifest.json"
    # What a later release may do: other fields, and no digest as we know it.
    path.write_text(json.dumps({**NEWER, "kind": "passages", "sections": []}))
    with pytest.raises(StoreError) as refused:
        read_manifest(tmp_path / "s", "passages")
    assert str(refused.value) == (
        f"{path} has schema version {SCHEMA_VERSION + 1}, written by 'soup-of-experts 7.2.0'; this is {WRITTEN_BY}, "
        f"which reads version {SCHEMA_VERSION}. Install soup-of-experts 7.2.0, or a newer one, to read it."
    )


def test_a_newer_stage_is_not_rebuilt_by_accident(tmp_path):
    build(tmp_path / "s")
    path = tmp_path / "s" / "manifest.json"
    path.write_text(json.dumps(NEWER))
    for rebuild in (False, True):
        with pytest.raises(StoreError, match="Install soup-of-experts 7.2.0"):
            open_stage(tmp_path / "s", kind="passages", configuration={"n": 1}, inputs={}, rebuild=rebuild)
    assert json.loads(path.read_text()) == NEWER


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"schema_version": 0, "written_by": "soup-of-experts 0.0.9"}, "Use soup-of-experts 0.0.9, or make"),
        ({"schema_version": True}, "version True, written by a release that it does not name"),
        ({"schema_version": "2" * 1000, "written_by": "x" * 1000}, "Use the release that wrote it, or make"),
        ({"schema_version": 2, "written_by": "a\x1b[2J"}, "Install the release that wrote it, or a newer"),
        ({}, "schema version None"),
    ],
)
def test_what_is_no_version_of_ours(body, message):
    problem = version_problem("file.json", body)
    assert message in problem and len(problem) < 300


def test_the_same_schema_is_read_whoever_wrote_it(tmp_path):
    before = build(tmp_path / "s").finished
    path = tmp_path / "s" / "manifest.json"
    path.write_text(path.read_text().replace(WRITTEN_BY, "soup-of-experts 0.9.0"))
    after = read_manifest(tmp_path / "s", "passages")
    assert after.written_by == "soup-of-experts 0.9.0" and after.digest == before.digest


def test_a_manifest_without_a_version_is_none(tmp_path):
    build(tmp_path / "s")
    path = tmp_path / "s" / "manifest.json"
    body = json.loads(path.read_text())
    del body["schema_version"]
    path.write_text(json.dumps(body))
    with pytest.raises(StoreError, match="is not a manifest: KeyError"):
        read_manifest(tmp_path / "s", "passages")
