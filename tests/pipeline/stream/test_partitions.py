"""The partitions that a stream reads: mapped without end or descriptors, changed, damaged, replaced."""

import gc
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from pipeline.stream import window_reader as window_readers
from pipeline.stream.window_reader import CHECK_SECONDS, window_reader
from storage_schema.domains import DomainStore, partition_path
from storage_schema.manifest import StoreError, read_manifest
from tests.pipeline.stream.toy_stream import L, make_plan, make_stream
from tests.toy_store import in_version_1, make_store, write_store


def test_a_window_is_the_packed_stream(store):
    opened = DomainStore(store)
    assert opened.windows_K(L).tolist() == [24, 0, 1, 0, 56, 20]  # 16 tokens hold no window of 16 + 1
    values = opened.volumes[0].tokens(4)
    read = window_reader(opened, L).read(np.array([4, 0, 4]), np.array([55, 0, 3]))
    assert np.array_equal(read[0], values[55 * L : 55 * L + L + 1])
    assert np.array_equal(read[2], values[3 * L : 3 * L + L + 1])
    assert np.array_equal(read[1], opened.volumes[0].tokens(0)[: L + 1])


@pytest.mark.parametrize("layout", [1, 3, 40, "version 1"])
def test_the_windows_are_the_same_however_domains_share_files(tmp_path, layout, monkeypatch):
    """Also where files are unmapped and mapped again on the way, and documents were added."""
    monkeypatch.setattr(window_readers, "MOST_MAPPINGS", 6)
    streams = [np.arange(0 if domain % 5 == 1 else 90 + 17 * domain) % 60 + 1 for domain in range(40)]
    folder = write_store(tmp_path / "store", streams, per_file=3 if layout == "version 1" else layout)
    if layout == "version 1":
        in_version_1(folder)
    tree = {"tree": read_manifest(folder / "domains", "domains").digest}
    added = write_store(
        tmp_path / "added", [stream[::-1] for stream in streams[::-1]], per_file=7, inputs=tree
    )
    (folder / "additions/0001").mkdir(parents=True)
    (added / "domains").rename(folder / "additions/0001/domains")
    opened, random = DomainStore(folder), np.random.Generator(np.random.PCG64(0))
    assert [volume.file_per_domain for volume in opened.volumes] == [layout == "version 1", False]
    reader = window_reader(opened, L)
    for count in [2, 3, 300, 2]:
        domains = random.choice(np.flatnonzero(opened.windows_K(L)), count)
        rows = random.integers(0, opened.windows_K(L)[domains])
        for found, domain, row in zip(reader.read(domains, rows), domains, rows, strict=True):
            first, second = streams[domain], streams[39 - domain][::-1]
            inside = row < max(len(first) - 1, 0) // L
            stream, at = (first, row) if inside else (second, row - max(len(first) - 1, 0) // L)
            assert np.array_equal(found, stream[at * L : at * L + L + 1])
    reader.finish()


def mappings_below(folder):
    with open("/proc/self/maps") as maps:
        return sum(f"{folder}/domains/node-" in line for line in maps)


def test_mappings_are_bounded_however_many_partitions_there_are(tmp_path, monkeypatch):
    """Linux allows a process 65,530: the files of 1,000 coarse nodes in 66 volumes."""
    folder = make_store(tmp_path, [200 + domain for domain in range(40)])
    monkeypatch.setattr(window_readers, "MOST_MAPPINGS", 12, raising=False)
    opened = DomainStore(folder)
    tokens = [opened.volumes[0].tokens(domain).copy() for domain in range(40)]
    gc.collect()  # what was mapped to read these
    assert mappings_below(folder) == 0
    reader, random = window_reader(opened, L), np.random.Generator(np.random.PCG64(0))
    for _ in range(20):
        domains = random.integers(0, 40, 30)  # more than may be mapped at once, in one read
        rows = random.integers(0, 12, 30)
        found = reader.read(domains, rows)
        for block_steps, domain, row in zip(found, domains, rows, strict=True):
            assert np.array_equal(block_steps, tokens[domain][row * L : row * L + L + 1])
        assert mappings_below(folder) <= 12
    path = opened.folder / partition_path(7)
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(StoreError, match="node-0007.* was changed or replaced"):  # mapped again or still
        for domain in range(40):
            reader.read(np.array([domain]), np.array([0]))
        reader.finish()


FEW_FILES = """
import resource, sys
from tests.pipeline.stream.toy_stream import make_stream
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
import numpy as np
seen, most = set(), 0
for batch in make_stream(sys.argv[1]).in_process(0, 800):
    seen |= set(np.flatnonzero(batch.domain_weights_WK.any(0)))
    if batch.step % 100 == 99:
        most = max(most, sum("/node-" in line for line in open("/proc/self/maps")))
print(len(seen), most)
"""


def test_a_process_that_may_open_256_files_reads_600_domains(tmp_path):
    """Each is mapped once, and holds no descriptor."""
    store = make_store(tmp_path / "store", [100] * 600)
    done = subprocess.run(
        [sys.executable, "-c", FEW_FILES, str(store)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    seen, most = map(int, done.stdout.split())
    assert seen > 590 and 590 < most <= 600


@pytest.mark.parametrize("change", ["removed", "truncated", "rewritten", "rebuilt"])
def test_a_partition_changed_under_a_running_stream_is_named(tmp_path, change):
    store = make_store(tmp_path / "store", [400, 400])
    batches = make_stream(store, make_plan(store), window_steps=1).in_process(0, 50)
    next(batches)
    for domain in range(2):
        path = store / "domains" / partition_path(domain)
        if change == "removed":
            path.unlink()
        elif change == "truncated":
            os.truncate(path, 500)
        elif change == "rewritten":
            path.write_bytes(path.read_bytes()[::-1])
    if change == "rebuilt":
        (store / "domains").rename(store / "old")
        make_store(tmp_path / "again", [400, 400], seed=1)
        (tmp_path / "again" / "domains").rename(store / "domains")
    time.sleep(CHECK_SECONDS + 0.1)
    with pytest.raises(StoreError, match=r"^/.*node-000[01].arrow was changed or replaced"):
        list(batches)


def test_a_domain_of_a_file_that_was_shortened_since_it_was_last_looked_at(tmp_path):
    """It is read for the first time: what lies beyond the end of the file would kill the process."""
    folder = write_store(tmp_path, [np.arange(20_000) % 60] * 3, per_file=3)
    reader = window_reader(DomainStore(folder), L)
    reader.read(np.array([0]), np.array([0]))
    os.truncate(folder / "domains" / partition_path(0), 500)
    with pytest.raises(StoreError, match="node-0000.arrow was changed or replaced"):
        reader.read(np.array([2]), np.array([0]))


@pytest.mark.parametrize("window_steps", [1, 50])
def test_a_partition_changed_just_before_the_last_read_is_named(tmp_path, window_steps):
    """No second passes between a look and the end: what was read is looked at once more."""
    store = make_store(tmp_path / "store", [400, 400])
    stream = make_stream(store, make_plan(store), window_steps=window_steps)
    batches = stream.in_process(0, 50)
    next(batches)
    path = store / "domains" / partition_path(0)
    data = bytearray(path.read_bytes())
    data[300] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match="^/.*node-0000.arrow was changed or replaced"):
        list(batches)


@pytest.mark.parametrize("damage", ["missing", "truncated", "shorter"])
def test_a_damaged_partition_is_named(tmp_path, damage):
    store = make_store(tmp_path / "store", [400, 400])
    path = store / "domains" / partition_path(1)
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:500])
    else:
        other = make_store(tmp_path / "other", [400, 200])
        path.write_bytes((other / "domains" / partition_path(1)).read_bytes())
    with pytest.raises(StoreError, match=r"node-0001"):
        DomainStore(store).volumes[0].tokens(1)


def test_a_store_that_was_rebuilt_is_not_streamed(tmp_path):
    stream = make_stream(store := make_store(tmp_path / "store", [400, 400]), make_plan(store))
    store.rename(tmp_path / "old")
    make_store(tmp_path / "store", [400, 400], seed=1)
    with pytest.raises(StoreError, match="is no longer the store that this run's plan is of"):
        next(stream.in_process(0, 1))
