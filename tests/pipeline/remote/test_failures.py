"""Reads that fail, and files that are not what they should be."""

from __future__ import annotations

import time
from types import SimpleNamespace

import moto.settings
import numpy as np
import pytest

from pipeline.places import locations, retries
from pipeline.places.retries import FIRST_DELAY, with_retries
from pipeline.remote.files import BLOCK_BYTES, RemoteFile, RemoteFiles
from pipeline.remote.store import open_store
from storage_schema.domains import DomainStore, partition_path
from storage_schema.manifest import StoreError
from tests.remote_stores import L, check_all, gather, key_of, windows_of
from tests.s3_server import BUCKET

pytestmark = pytest.mark.usefixtures("in_haste")


@pytest.mark.parametrize("kind", ["busy", "reset", "cut"])
def test_the_same_windows_after_some_failures(uri, folder, proxy, kind):
    """Every request fails once, those of the mirror too, and those of a domain twice."""

    def rule(method, path, where, seen):
        fails = 2 if "node-0004" in path else 1
        return kind if seen < fails and (method == "GET" or kind != "cut") else None

    proxy.rule = rule
    check_all(open_store(uri), folder)
    assert len(proxy.failed) > 25 and set(proxy.failed) == {kind}


@pytest.mark.parametrize("kind", ["busy", "reset", "cut"])
def test_lasting_failure_is_named_within_a_bounded_time(uri, folder, proxy, kind):
    store = open_store(uri)
    proxy.rule = lambda method, path, where, seen: kind if method == "GET" and "node-0004" in path else None
    windows, start = store.windows(4, L)[0], time.monotonic()
    name = rf"{uri}/domains/node-0004\.arrow"
    with pytest.raises(StoreError, match=rf"^cannot read {name} after 5 attempts: The store '{uri}' ca.*\. "):
        gather(windows, [0, 3000, 8000])
    assert time.monotonic() - start < 10
    assert 5 <= proxy.of("node-0004") <= 10  # of a reset, the S3 client's own connection tries again
    assert len(gather(store.windows(5, L)[0], [7])) == 1
    proxy.rule = lambda *_: None
    tokens = DomainStore(folder).volumes[0].tokens(4)
    assert np.array_equal(gather(windows, [0, 3000, 8000]), windows_of(tokens)[[0, 3000, 8000]])


@pytest.mark.parametrize(("kind", "attempts", "seconds"), [("silent", 2, 8), ("stalled", 1, 16)])
def test_a_server_that_goes_silent_is_given_up_within_a_bounded_time(
    uri, folder, proxy, monkeypatch, kind, attempts, seconds
):
    """It takes the connection, and answers nothing, or half: curl then averages over some seconds more."""
    monkeypatch.setattr(locations, "STALLED_SECONDS", 1.0)
    monkeypatch.setattr(retries, "ATTEMPTS", attempts)
    windows = open_store(uri).windows(4, L)[0]
    gather(windows, [0])
    proxy.rule, start = lambda method, path, where, seen: kind, time.monotonic()
    with pytest.raises(
        StoreError,
        match=rf"^cannot read {windows.file.uri} after {attempts} attempts: The store '{uri}' cannot be "
        r"reached at http://127.* and run again\.$",
    ):
        gather(windows, [5000])
    assert attempts - 0.5 < time.monotonic() - start < seconds
    proxy.rule = lambda *_: None
    assert np.array_equal(
        gather(windows, [5000])[0], windows_of(DomainStore(folder).volumes[0].tokens(4))[5000]
    )


def test_a_failure_among_many_reads_at_once(uri, proxy):
    """The blocks of one request fail, those beside it do not."""
    store = open_store(uri)
    [windows] = store.windows(4, L)
    gather(windows, [0])
    proxy.rule = lambda method, path, where, seen: (
        "busy" if where.startswith(f"bytes={2 * BLOCK_BYTES}-") else None
    )
    with pytest.raises(StoreError, match="^cannot read .* after 5 attempts"):
        gather(windows, [0, 5000, 9000])


def test_a_short_read_is_a_failure():
    """Which the S3 client notices itself; nothing says that other file systems do."""
    lengths = [7, 0, 10, *[9] * 5]
    handle = SimpleNamespace(
        size=lambda: 10,
        metadata=lambda: {"ETag": "x"},
        read_at=lambda size, start: bytes(size)[: lengths.pop(0)],
    )
    file = RemoteFile(path="f", uri="s3://a/b/f", bytes=10)
    files = RemoteFiles("s3://a/b", SimpleNamespace(open_input_file=lambda path: handle, type_name="s3"))
    assert files.read(file, 0, 10) == bytes(10)
    with pytest.raises(StoreError, match="^cannot read s3://a/b/f after 5 .* 9 of 10 bytes came"):
        files.read(file, 0, 10)
    assert not lengths


def test_waits_double_and_are_spread(monkeypatch):
    waits = []
    monkeypatch.setattr(retries, "FIRST_DELAY", FIRST_DELAY)
    monkeypatch.setattr(retries, "time", SimpleNamespace(sleep=waits.append))

    def fails():
        raise OSError("AWS Error SLOW_DOWN during GetObject")

    for _ in range(2):
        with pytest.raises(
            StoreError, match="cannot read s3://a/b/c after 5 attempts: The store 's3://a/b' .*SLOW_DOWN"
        ):
            with_retries(fails, uri="s3://a/b/c", store="s3://a/b")
    assert len(waits) == 8 and waits[:4] != waits[4:]
    for number, seconds in enumerate(waits):
        assert 0.1 * 2 ** (number % 4) <= seconds <= 0.3 * 2 ** (number % 4)


def test_refused_credentials_are_named(uri, monkeypatch):
    monkeypatch.setattr(moto.settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)
    with pytest.raises(StoreError, match=f"The store '{uri}' refuses the credentials.*AWS_ACCESS_KEY_ID"):
        open_store(uri)


def test_a_truncated_partition_is_refused(s3, own_uri, own):
    store, data = open_store(own_uri), (own / "domains" / partition_path(4)).read_bytes()
    s3.put_object(Bucket=BUCKET, Key=key_of(own, 4), Body=data[:-1000])
    with pytest.raises(
        StoreError,
        match=f"^{own_uri}/domains/node-0004.arrow has {len(data) - 1000} bytes "
        f"instead of {len(data)}: it was truncated or replaced",
    ):
        gather(store.windows(4, L)[0], [0])
    assert len(gather(store.windows(5, L)[0], [0])) == 1


def test_a_partition_truncated_while_it_is_read_is_refused_at_once(s3, own_uri, own, proxy):
    store, data = open_store(own_uri), (own / "domains" / partition_path(4)).read_bytes()
    windows = store.windows(4, L)[0]
    gather(windows, [0])
    s3.put_object(Bucket=BUCKET, Key=key_of(own, 4), Body=data[:1000])
    proxy.requests.clear()
    with pytest.raises(StoreError, match="^s3://.*node-0004.arrow has 1000 bytes"):
        gather(windows, [9000])
    assert len(proxy.requests) == 2


def test_another_file_of_the_same_size_is_refused(s3, own_uri, own):
    path = own / "additions/0001/domains" / partition_path(3)
    s3.put_object(Bucket=BUCKET, Key=key_of(own, 3, "additions/0001/"), Body=bytes(path.stat().st_size))
    first, second = open_store(own_uri).windows(3, L)
    assert len(gather(first, [0])) == 1
    name = f"{own_uri}/additions/0001/domains/node-0003.arrow"
    with pytest.raises(StoreError, match=f"^domain 3: {name} does not hold its 70000 tokens where"):
        gather(second, [0])


def test_a_partition_that_the_manifest_lacks(uri):
    store = open_store(uri)
    del store.volumes[0]._sizes[partition_path(4)]
    with pytest.raises(StoreError, match="^the manifest of .* has no node-0004.arrow, but its index has"):
        store.windows(4, L)


def test_a_missing_partition_is_named_at_once(s3, own_uri, own, proxy):
    store = open_store(own_uri)
    s3.delete_object(Bucket=BUCKET, Key=key_of(own, 5))
    proxy.requests.clear()
    with pytest.raises(StoreError, match=f"^{own_uri}/domains/node-0005.arrow is missing"):
        gather(store.windows(5, L)[0], [0])
    assert proxy.of("node-0005", "HEAD") == 1 and proxy.of("node-0005") == 0
