"""Windows of stores on S3, served by moto on loopback; a proxy counts what is asked for."""

from __future__ import annotations

import numpy as np
import pytest
from pyarrow import fs

from pipeline.remote import windows as remote_windows
from pipeline.remote.files import BLOCK_BYTES, RemoteFile, RemoteFiles
from pipeline.remote.store import RemoteStore, open_store
from pipeline.stream.window_reader import window_reader
from storage_schema.domains import DomainStore, partition_path
from storage_schema.manifest import StoreError
from tests.remote_stores import (
    MORE,
    SIZES,
    VOCAB,
    L,
    check_all,
    fds_below,
    gather,
    upload_once,
)

pytestmark = pytest.mark.usefixtures("in_haste")


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
        with pytest.raises(IndexError, match=f"domain 4 has {len(windows)} windows in .*node-0004.arrow"):
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
