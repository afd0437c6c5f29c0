"""Trees, indexes and partitions that mean harm: one error that names the file, and nothing else happens."""

import errno

import numpy as np
import pyarrow as pa
import pytest

from storage_schema.arrow_files import read_arrow
from storage_schema.domains import INDEX, DomainStore, partition_path
from storage_schema.manifest import StoreError, UnavailableError
from tests.hostile import EXTENSIONS, PICKLE, forged
from tests.toy_store import make_store


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield make_store(tmp_path / "store", [40, 0, 30])
    assert not (tmp_path / "PICKLED").exists()


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
    partition_path(0): lambda store: DomainStore(store).volumes[0].batch(0),
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


PLACES = {"file": [0, 1, 2], "tokens_at": [0, 0, 0]}
SOUND = {"domain": [0, 1, 2], "passages": [1, 0, 1], "tokens": [40, 0, 30], **PLACES}


@pytest.mark.parametrize(
    "index",
    [
        {"domain": [0, 1, 2], "passages": [1, 0, 1], "tokens": [40, -1, 30], **PLACES},
        {"domain": [0, 2, 1], "passages": [1, 0, 1], "tokens": [40, 0, 30], **PLACES},
        dict.fromkeys(INDEX.names, []),
        {"domain": [0, 1, 2], "passages": [1, None, 1], "tokens": [40, 0, 30], **PLACES},
        SOUND | {"file": [0, 2, 1]},
        SOUND | {"file": [0, 1, 1 << 30]},
        SOUND | {"tokens_at": [-8, 0, 0]},
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
    with pytest.raises(StoreError, match="domain 0: .*node-0000.arrow does not hold its 40 tokens"):
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
