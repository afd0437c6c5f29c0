"""Manifests, trees, indexes and partitions that mean harm: one error that names the file, and nothing else happens."""

import errno
import os
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from storage_schema.arrow_files import read_arrow
from storage_schema.domains import INDEX, DomainStore, partition_path
from storage_schema.json_files import read_json
from storage_schema.lock import LOCK, only_writer
from storage_schema.manifest import StoreError, UnavailableError, read_manifest, verify_files
from storage_schema.stage import open_stage
from storage_schema.verified import STAMP, verify_once
from tests.hostile import EXTENSIONS, JSON, PICKLE, forged
from tests.toy_store import make_store


@pytest.fixture
def stage(tmp_path):
    opened = open_stage(tmp_path / "s", kind="passages", configuration={}, inputs={})
    (opened.work / "a.bin").write_bytes(b"content")
    opened.finish({})
    return opened


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield make_store(tmp_path / "store", [40, 0, 30])
    assert not (tmp_path / "PICKLED").exists()


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


def write(path, table):
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)


def extended(column: pa.ChunkedArray, name: str) -> pa.Table:
    """A column of an extension type that nobody here has registered, as a file describes it."""
    metadata = {b"ARROW:extension:name": name.encode(), b"ARROW:extension:metadata": PICKLE}
    return pa.field("", column.type, metadata=metadata)


READ = {
    "index.arrow": lambda store: DomainStore(store),
    "tree.arrow": lambda store: DomainStore(store).tree,
    partition_path(0): lambda store: DomainStore(store).volumes[0].tokens(0),
}


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("content", [b"", b"ARROW1\0\0", b"ARROW1\0\0" + b"\xff" * 4096 + b"ARROW1", PICKLE])
def test_what_is_no_arrow_file(store, name, content):
    (store / "domains" / name).write_bytes(content)
    with pytest.raises(StoreError, match=f"cannot read .*{name}"):
        READ[name](store)


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("type_name", [*EXTENSIONS, "ray too"])
def test_a_column_of_an_extension_type(store, name, type_name):
    if type_name == "ray too":
        import ray.data  # noqa: F401  (registers its types)
        from ray.data.extensions import ArrowTensorType  # noqa: F401

        type_name = "ray.data.arrow_tensor_v2"
    path = store / "domains" / name
    table = pa.ipc.open_file(pa.py_buffer(path.read_bytes())).read_all()
    fields = [
        extended(column, type_name).with_name(n)
        for n, column in zip(table.schema.names, table.columns, strict=True)
    ]
    other = pa.table([pa.array(range(len(table))), *table.columns[1:]], table.schema.names)
    hostile = other.cast(
        pa.schema([pa.field(fields[0].name, pa.int64(), metadata=fields[0].metadata), *fields[1:]])
    )
    write(path, hostile)
    with pytest.raises(StoreError, match=name):
        READ[name](store)


@pytest.mark.parametrize(
    "index",
    [
        {"domain": [0, 1, 2], "passages": [1, 0, 1], "tokens": [40, -1, 30]},
        {"domain": [0, 2, 1], "passages": [1, 0, 1], "tokens": [40, 0, 30]},
        {"domain": [], "passages": [], "tokens": []},
        {"domain": [0, 1, 2], "passages": [1, None, 1], "tokens": [40, 0, 30]},
    ],
)
def test_an_index_of_impossible_numbers(store, index):
    write(store / "domains/index.arrow", pa.table(index, INDEX))
    with pytest.raises(StoreError, match="index.arrow"):
        DomainStore(store)


@pytest.mark.parametrize(
    "change", [{"vocab_size": -1}, {"vocab_size": 1 << 60}, {"end_of_text": 64}, {"vocab_size": "64"}]
)
def test_a_domains_manifest_of_impossible_numbers(store, change):
    manifest = DomainStore(store).manifest
    text = forged(manifest, configuration=manifest.configuration | change)
    (store / "domains/manifest.json").write_text(text)
    with pytest.raises(StoreError, match=f"domains says {next(iter(change))}.*must be a whole number from"):
        DomainStore(store)


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("level", pa.array([0, 0, 1, 1], pa.int8()), "the index has 3"),
        ("level", pa.array([0, 1, 1, 0], pa.int8()), "is not a tree of centroids: 2 coarse nodes"),
        ("level", pa.array([1, 1, 1, 1], pa.int8()), "0 coarse nodes"),
        ("count", pa.array([0, -1, 0, 0], pa.int64()), "a count is negative"),
        ("count", pa.array([0, None, 0, 0], pa.int64()), "1 nulls in count"),
        ("count", pa.array(["0"] * 4), "not a tree of centroids: its columns are"),
        ("centroid", pa.array([[np.inf] * 6] * 4, pa.list_(pa.float32(), 6)), "a centroid infinite"),
        (
            "centroid",
            pa.array([[0.0] * 6] * 4, pa.list_(pa.float32())),
            "not a tree of centroids: its columns are",
        ),
        ("centroid", pa.array([[]] * 4, pa.list_(pa.float32(), 0)), "not a tree of centroids"),
    ],
)
def test_a_tree_that_is_none(store, column, values, said):
    path = store / "domains/tree.arrow"
    table = pa.ipc.open_file(pa.py_buffer(path.read_bytes())).read_all()
    at = table.schema.names.index(column)
    write(path, table.set_column(at, column, values))
    with pytest.raises(StoreError, match=f"tree.arrow.*({said})"):
        READ["tree.arrow"](store)


def test_a_partition_that_claims_more_than_it_holds(store):
    """Its lengths lie in the flatbuffer of the record batch: 40 tokens become 2^20, which are not there."""
    path = store / "domains" / partition_path(0)
    content = path.read_bytes()
    assert content.count((40).to_bytes(8, "little")) > 1
    path.write_bytes(content.replace((40).to_bytes(8, "little"), (1 << 20).to_bytes(8, "little")))
    with pytest.raises(StoreError, match="domain 0: cannot read .*part-00000.arrow"):
        DomainStore(store).volumes[0].tokens(0)
    with pytest.raises(StoreError, match="domain 0"):
        DomainStore(store).passages(0)


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (OSError(errno.EIO, "Input/output error"), True),
        (OSError(errno.ESTALE, "Stale file handle"), True),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), False),
        (OSError("Expected to be able to read 500 bytes for message body, got 20"), False),
        (pa.ArrowInvalid("Not an Arrow file"), False),
    ],
)
def test_a_disk_that_fails_in_passing_is_told_from_a_damaged_file(monkeypatch, error, passing):
    def fails(path):
        raise error

    monkeypatch.setattr(pa, "memory_map", fails)
    with pytest.raises(StoreError, match="cannot read part.arrow") as raised:
        read_arrow("part.arrow", what="a table")
    assert isinstance(raised.value, UnavailableError) == passing
