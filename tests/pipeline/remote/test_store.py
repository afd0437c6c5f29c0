"""Windows of stores on S3, served by moto on loopback; a proxy counts what is asked for."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import fs

from pipeline.remote import windows as remote_windows
from pipeline.remote.files import BLOCK_BYTES, RemoteFile, RemoteFiles
from pipeline.remote.partition_layout import find_values
from pipeline.remote.store import RemoteStore, open_store
from pipeline.stream.window_reader import window_reader
from storage_schema.domains import DomainStore, partition_path, partition_schema
from storage_schema.manifest import StoreError, read_manifest
from storage_schema.stage import open_stage
from tests.remote_stores import (
    MORE,
    SIZES,
    VOCAB,
    L,
    arrow_file,
    check_all,
    fds_below,
    gather,
    upload_once,
    write_part,
)
from tests.toy_store import in_version_1

pytestmark = pytest.mark.usefixtures("in_haste")


# The file's layout


@pytest.mark.parametrize("dtype", VOCAB)
def test_the_tokens_are_where_they_are_looked_for(dtype):
    schema = partition_schema(VOCAB[dtype])
    rng = np.random.Generator(np.random.PCG64(0))
    for size in [*range(1, 130), 1000, 4095, 4096, 4097, 65_537]:
        for passages in {1, 2, min(size, 7)}:
            tokens = rng.integers(0, VOCAB[dtype], size).astype(dtype)
            data = arrow_file(tokens, schema, passages)
            at = find_values(
                lambda start, stop, data=data: data[start:stop], len(data), size, tokens.itemsize
            )
            assert data[at : at + tokens.nbytes] == tokens.tobytes()


def test_a_footer_longer_than_the_first_read():
    schema = partition_schema(100).with_metadata({"note": "x" * 5000})
    data = arrow_file(np.arange(40, dtype=np.uint16), schema)
    at = find_values(lambda start, stop: data[start:stop], len(data), 40, 2)
    assert data[at : at + 80] == np.arange(40, dtype=np.uint16).tobytes()


@pytest.mark.parametrize(
    "kind",
    ["other length", "cut", "no magic", "no marker", "not arrow", "two batches", "compressed", "empty"],
)
def test_another_layout_is_not_taken_for_tokens(kind):
    tokens, size = np.full(4000, 4000, np.uint16), 4000
    options = pa.ipc.IpcWriteOptions(compression="zstd") if kind == "compressed" else None
    times = 2 if kind == "two batches" else 1
    data = arrow_file(tokens, partition_schema(100), options=options, times=times)
    end = len(data) - 18 - int.from_bytes(data[-10:-6], "little")
    data = {
        "cut": data[:-8],
        "no magic": data[:-1] + b"2",
        "no marker": data[:end] + b"\0" + data[end + 1 :],
        "not arrow": b"\0" * len(data),
        "empty": b"",
    }.get(kind, data)
    size = {"other length": 3999, "two batches": 8000}.get(kind, size)
    assert find_values(lambda start, stop: data[start:stop], len(data), size, 2) is None


# Equal windows


@pytest.mark.parametrize("dtype", VOCAB)
@pytest.mark.parametrize("length", [L, 40_000])
def test_windows_are_those_of_the_local_store(s3, stores, uploaded, dtype, length):
    folder = stores[dtype]
    store = open_store(upload_once(s3, folder, uploaded))
    assert isinstance(store, RemoteStore) and store.digest == DomainStore(folder).digest
    assert np.array_equal(store.tree.counts_K, DomainStore(folder).tree.counts_K)
    assert store.num_domains == len(SIZES) and store.token_dtype == dtype
    assert check_all(store, folder, length) > (10_000 if length == L else 4)


@pytest.mark.parametrize("layout", ["shared", "version 1"])
def test_windows_of_domains_that_share_a_file_and_of_schema_version_1(s3, tmp_path, proxy, layout):
    folder = tmp_path / layout.replace(" ", "-")
    for kind, name in (("tokenizer", "tokenizer.json"), ("embeddings", "part-00000.arrow")):
        stage = open_stage(folder / kind, kind=kind, configuration={}, inputs={})
        (stage.work / name).write_text(f"the {kind}")
        stage.finish({})
    write_part(folder, SIZES, "uint16", {}, per_file=6)
    if layout == "version 1":
        in_version_1(folder)
    tree = read_manifest(folder / "domains", "domains").digest
    write_part(folder / "additions" / "0001", MORE, "uint16", {"tree": tree}, per_file=6)
    uri = upload_once(s3, folder, set())
    assert check_all(open_store(uri), folder) > 10_000
    local, store, proxy.requests[:] = DomainStore(folder), open_store(uri), []
    domains = np.repeat(np.arange(6), local.windows_K(L))
    rows = np.concatenate([np.arange(count) for count in local.windows_K(L)])
    assert np.array_equal(
        window_reader(store, L).read(domains, rows), window_reader(local, L).read(domains, rows)
    )
    asked = [(path, where) for method, path, where in proxy.requests if method == "GET" and where]
    assert len(asked) == len(set(asked)) and len({path for path, _ in asked}) == (
        2 if layout == "shared" else 5
    )


def test_the_reader_of_a_plan_reads_the_same(uri, folder):
    rng, local = np.random.Generator(np.random.PCG64(2)), DomainStore(folder)
    domains = rng.choice(np.flatnonzero(local.windows_K(L)), 500)
    rows = rng.integers(0, local.windows_K(L)[domains])
    expected = window_reader(local, L).read(domains, rows)
    assert np.array_equal(window_reader(open_store(uri), L).read(domains, rows), expected)


def test_a_path_is_a_local_store(folder):
    assert (
        type(open_store(folder)) is DomainStore and len(open_store(str(folder), num_volumes=1).volumes) == 1
    )


def test_rows_that_do_not_exist(uri):
    [windows] = open_store(uri).windows(4, L)
    for rows in ([len(windows)], [-1]):
        with pytest.raises(IndexError, match=f"node-0004.arrow has {len(windows)} windows"):
            gather(windows, rows)
    assert gather(windows, []).shape == (0, L + 1)


def test_passages_are_not_read_from_afar(uri):
    with pytest.raises(StoreError, match="domain 3: passages are read from a store on this machine only"):
        open_store(uri).passages(3)


# What is fetched and what is kept


def test_one_window_is_a_few_small_reads(uri, proxy, folder):
    windows = open_store(uri).windows(4, L)[0]
    proxy.requests.clear()
    proxy.sent = 0
    gather(windows, [3000])
    # Size and version, when it was written, the list's end, the window; then the version again.
    assert [method for method, *_ in proxy.requests] == ["HEAD", "HEAD", "GET", "GET", "HEAD"]
    assert proxy.sent <= BLOCK_BYTES + 1000 < (folder / "domains" / partition_path(4)).stat().st_size / 4


def test_neighbouring_blocks_are_one_request(uri, proxy):
    [windows] = open_store(uri).windows(4, L)
    gather(windows, [0])
    proxy.requests.clear()
    gather(windows, range(len(windows)))
    ranges = [where for method, _, where in proxy.requests if method == "GET"]
    assert ranges == [f"bytes={BLOCK_BYTES}-{windows.file.bytes - 1}"] and len(proxy.requests) == 2


def test_requests_are_bounded(tmp_path):
    data = np.random.Generator(np.random.PCG64(3)).bytes(40 * BLOCK_BYTES + 7)
    (tmp_path / "file").write_bytes(data)
    file = RemoteFile(path=str(tmp_path / "file"), uri="the file", bytes=len(data))
    files, runs = RemoteFiles("the store", fs.LocalFileSystem()), []
    fetch = files._fetch
    files._fetch = lambda file, low, high: runs.append((low, high)) or fetch(file, low, high)
    found = files.blocks({file: [0, *range(2, 41)]})
    assert sorted(runs) == [(0, 1), (2, 18), (18, 34), (34, 41)]
    assert b"".join(found[file.path, number] for number in range(2, 41)) == data[2 * BLOCK_BYTES :]


def test_windows_are_gathered_a_few_blocks_at_a_time(uri, folder, monkeypatch):
    monkeypatch.setattr(remote_windows, "GATHERED_BLOCKS", 2)
    store, asked = open_store(uri), []
    blocks = store.files.blocks
    store.files.blocks = lambda wanted: asked.append(max(map(len, wanted.values()))) or blocks(wanted)
    check_all(store, folder)
    assert max(asked) == 2 and len(asked) > 10


def test_what_was_read_is_not_asked_for_again(uri, proxy, folder):
    store = open_store(uri)
    check_all(store, folder)
    proxy.requests.clear()
    assert check_all(store, folder) and proxy.requests == []


@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_the_cache_stays_within_its_bound(uri, folder, proxy, blocks):
    store = RemoteStore(uri, cache_bytes=blocks * BLOCK_BYTES)
    most, store_block = 0, store.files._fetch

    def fetch(*run):
        nonlocal most
        found = store_block(*run)
        most = max(most, sum(map(len, store.files.cache._blocks.values())))
        return found

    store.files._fetch = fetch
    check_all(store, folder)
    check_all(store, folder)
    assert (blocks > 0) <= most <= blocks * BLOCK_BYTES
    assert store.files.cache.bytes == sum(map(len, store.files.cache._blocks.values()))


def test_the_blocks_used_longest_ago_go_first(uri, proxy):
    store = RemoteStore(uri, cache_bytes=2 * BLOCK_BYTES)
    [windows] = store.windows(4, L)
    rows = [BLOCK_BYTES // 2 // L * block + 10 for block in range(3)]
    for row in (rows[0], rows[1], rows[0], rows[2]):
        gather(windows, [row])
    proxy.requests.clear()
    gather(windows, [rows[0], rows[2]])
    assert proxy.requests == []
    gather(windows, [rows[1]])
    assert [method for method, *_ in proxy.requests] == ["GET", "HEAD"]


def test_open_handles_are_bounded(folder):
    """Of a store on a disk, where a handle is a descriptor that can be counted."""
    store = RemoteStore(f"file://{folder}")
    check_all(store, folder)
    assert fds_below(folder) == sum(size > L for size in SIZES + MORE) + len(
        store.volumes
    )  # and their manifests
    files, store.files = store.files, RemoteFiles(store.uri, store.files.filesystem, open_files=2)
    del files
    store._tokens_at.clear()
    check_all(store, folder)
    assert fds_below(folder) == 2


def test_prefetched_windows_wait_once(uri, folder, proxy):
    store, local = open_store(uri), DomainStore(folder)
    domains = np.repeat(np.arange(6), local.windows_K(L))
    rows = np.concatenate([np.arange(count) for count in local.windows_K(L)])
    store.prefetch(domains, rows, L)
    proxy.requests.clear()
    assert np.array_equal(
        window_reader(store, L).read(domains, rows), window_reader(local, L).read(domains, rows)
    )
    assert proxy.requests == []
    small = RemoteStore(uri, cache_bytes=2 * BLOCK_BYTES)
    proxy.sent = 0
    small.prefetch(domains, rows, L)
    assert proxy.sent < 3 * BLOCK_BYTES  # some of it the ends of the files
    assert 0 < small.files.cache.bytes <= 2 * BLOCK_BYTES
    check_all(small, folder)
