"""Files that are replaced by others of the same size while they are read, and stores that are rebuilt."""

from __future__ import annotations

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pipeline.remote import files as remote_files
from pipeline.remote.files import BLOCK_BYTES
from pipeline.remote.store import open_store
from pipeline.reports.audit import verify_domains
from storage_schema.domains import DomainStore, partition_path
from storage_schema.manifest import StoreError
from tests.remote_stores import SIZES, L, gather, key_of, windows_of, write_part
from tests.s3_server import BUCKET, upload

pytestmark = pytest.mark.usefixtures("in_haste")

REPLACED_WORDS = "node-0004.arrow was replaced while it was read"
REPLACED = f"^(s3|file)://.*{REPLACED_WORDS}. .* verify_store=true"


@pytest.fixture
def at_every_use(monkeypatch):
    """Files are looked at whenever they are used."""
    monkeypatch.setattr(remote_files, "CHECK_SECONDS", 0.0)


def other(folder, domain):
    """The bytes of a partition, one of them changed in each block but the first."""
    data = bytearray((folder / "domains" / partition_path(domain)).read_bytes())
    for at in range(BLOCK_BYTES, len(data) - 1000, BLOCK_BYTES):
        data[at + 100] ^= 1
    return bytes(data)


def put(s3, folder, domain, data):
    s3.put_object(Bucket=BUCKET, Key=key_of(folder, domain), Body=data)


def test_a_file_replaced_under_an_open_handle_is_refused(s3, own_uri, own, at_every_use):
    [windows] = open_store(own_uri).windows(4, L)
    gather(windows, [0])
    put(s3, own, 4, (own / "domains" / partition_path(4)).read_bytes())  # copied again: the same
    gather(windows, [5000])
    put(s3, own, 4, other(own, 4))
    for rows in ([9000], [9000], [5000]):  # nor is what was read before given out any more
        with pytest.raises(StoreError, match=REPLACED):
            gather(windows, rows)
    assert windows.store.files.cache.bytes == 0


def test_what_was_read_of_a_replaced_file_is_neither_used_nor_kept(s3, own_uri, own):
    """Also where it is replaced after it was opened, before its bytes come; and the former one may come back."""
    [windows] = open_store(own_uri).windows(4, L)
    gather(windows, [0])
    put(s3, own, 4, other(own, 4))
    tokens = DomainStore(own).volumes[0].tokens(4)
    row = [(BLOCK_BYTES + 100 - windows.tokens_at) // windows.step]
    with pytest.raises(StoreError, match=REPLACED):
        gather(windows, row)
    put(s3, own, 4, (own / "domains" / partition_path(4)).read_bytes())
    assert np.array_equal(gather(windows, row), windows_of(tokens)[row])


def test_what_is_read_is_looked_at_once_and_manifests_once_an_interval(own_uri, proxy):
    [windows] = open_store(own_uri).windows(4, L)
    gather(windows, [0])
    proxy.requests.clear()
    gather(windows, [5000])
    assert proxy.of("node-0004", "HEAD") == 1 and proxy.of("manifest.json", "HEAD") == 0
    gather(windows, [5000])  # from the cache
    assert proxy.of("node-0004", "HEAD") == 1
    windows.store.files._checked_at = dict.fromkeys(windows.store.files._checked_at, -1e9)
    for _ in range(2):
        gather(windows, [0, 5000])
    assert proxy.of("node-0004", "HEAD") == 1 and proxy.of("manifest.json", "HEAD") == 2  # two parts


def test_a_file_replaced_before_it_was_first_opened_is_refused(s3, own_uri, own):
    """Nothing of it is known but its size and when it was written. A listing has whole seconds here."""
    [windows] = open_store(own_uri).windows(4, L)
    time.sleep(1.1)
    put(s3, own, 4, other(own, 4))
    for _ in range(2):
        with pytest.raises(StoreError, match=REPLACED):
            gather(windows, [0])


def test_a_failure_while_it_is_first_opened_does_not_let_a_replaced_file_in(s3, own_uri, own, proxy):
    [windows] = open_store(own_uri).windows(4, L)
    time.sleep(1.1)
    put(s3, own, 4, other(own, 4))
    proxy.rule = lambda method, path, where, seen: "busy" if method == "HEAD" and seen in (1, 2) else None
    with pytest.raises(StoreError, match=REPLACED):
        gather(windows, [0])


def test_of_many_threads_none_is_given_a_replaced_file(s3, own_uri, own):
    store = open_store(own_uri)
    time.sleep(1.1)
    put(s3, own, 4, other(own, 4))
    with ThreadPoolExecutor(8) as pool:
        read = [pool.submit(gather, store.windows(4, L)[0], [0]) for _ in range(8)]
    assert all(REPLACED_WORDS in str(one.exception()) for one in read)


def test_every_partition_of_a_store_elsewhere_is_compared(s3, own_uri, own):
    """What has the same size was there before the store was opened: only its content tells."""
    counted = []
    verify_domains(open_store(own_uri), report=lambda done, of: counted.append((done, of)))
    assert counted[-1][0] == counted[-1][1] == len(counted)
    put(s3, own, 4, other(own, 4))
    with pytest.raises(StoreError, match="^s3://.*node-0004.arrow was altered: its sha256"):
        verify_domains(open_store(own_uri))


def test_a_file_replaced_before_it_is_read_again_after_a_failure(s3, own_uri, own, proxy):
    [windows] = open_store(own_uri).windows(4, L)
    gather(windows, [0])
    put(s3, own, 4, other(own, 4))
    proxy.rule = lambda method, path, where, seen: "busy" if method == "GET" and seen == 0 else None
    with pytest.raises(StoreError, match=REPLACED):
        gather(windows, [9000])


def test_a_file_replaced_on_a_disk_that_is_named_by_a_uri(own, at_every_use):
    [windows] = open_store(f"file://{own}").windows(4, L)
    gather(windows, [0])
    path = own / "domains" / partition_path(4)
    (own / "other").write_bytes(other(own, 4))
    os.replace(own / "other", path)
    with pytest.raises(StoreError, match=REPLACED):
        gather(windows, [9000])


def test_a_rebuilt_store_is_refused_by_partitions_that_were_not_read_before(s3, own_uri, own, at_every_use):
    """Of which only the store's manifest tells that they are others, where all was written within a second."""
    store = open_store(own_uri)
    gather(store.windows(4, L)[0], [0])
    shutil.rmtree(own / "domains")
    write_part(own, SIZES, "uint16", {"other": "store"})
    upload(s3, own)
    named = f"{own_uri}/domains/(manifest.json|node-0005.arrow) (was replaced|has .* instead of)"
    with pytest.raises(StoreError, match=named):
        gather(store.windows(5, L)[0], [0])
