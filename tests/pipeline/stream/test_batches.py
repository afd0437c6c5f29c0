"""Batches: the windows the plan names, the same for every world size, in process and through Ray Data."""

import contextlib
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pyarrow as pa
import pytest

from pipeline.mixtures.meta_distributions import Sparse
from pipeline.mixtures.plan import MixturePlan
from pipeline.stream import batches as streaming
from pipeline.stream import window_reader as window_readers
from pipeline.stream.batches import Fetch, MixtureStream, StreamError
from pipeline.stream.window_reader import CHECK_SECONDS, window_reader
from storage_schema.domains import DomainStore, partition_path
from storage_schema.manifest import StoreError
from tests.slow_plan import Slow, SlowStart
from tests.toy_store import make_store

L = 16
LAW = Sparse(support_size=2)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store"), [400, 0, 17, 16, 900, 333])


def make_plan(store, *, law=LAW, cls=MixturePlan, **changes):
    opened = DomainStore(store)
    settings = dict(seed=3, batch_size=8, mixtures_per_step=4) | changes
    windows_K = opened.windows_K(L)
    return cls(windows_K, law, store_digest=opened.digest, sequence_length=L, **settings)


def make_stream(store, plan=None, **settings):
    plan = plan or make_plan(store)
    return MixtureStream(store_folder=str(store), sequence_length=L, plan=plan, **settings)


def check_from(stream, expected, start, stop, *, world_size=1, ray=False):
    """The global batches of [start, stop), put together from all ranks, are those of `expected`."""
    ranks = [stream.for_rank(rank, world_size) for rank in range(world_size)]
    parts = [rank.through_ray(start, stop) if ray else rank.in_process(start, stop) for rank in ranks]
    steps = list(zip(*parts, strict=True))
    assert [shares[0].step for shares in steps] == list(range(start, stop))
    for shares in steps:
        whole = expected[shares[0].step]
        assert np.array_equal(np.concatenate([b.tokens_BL1 for b in shares]), whole.tokens_BL1)
        assert np.concatenate([b.mixture_B for b in shares]).tolist() == whole.mixture_B.tolist()
        assert all(np.array_equal(b.domain_weights_WK, whole.domain_weights_WK) for b in shares)


@pytest.fixture(scope="module")
def expected(store):
    """The batches of the first steps, in process."""
    return list(make_stream(store).in_process(0, 700))


def test_a_window_is_the_packed_stream(store):
    opened = DomainStore(store)
    assert opened.windows_K(L).tolist() == [24, 0, 1, 0, 56, 20]  # 16 tokens hold no window of 16 + 1
    values = opened.volumes[0].tokens(4)
    read = window_reader(opened, L).read(np.array([4, 0, 4]), np.array([55, 0, 3]))
    assert np.array_equal(read[0], values[55 * L : 55 * L + L + 1])
    assert np.array_equal(read[2], values[3 * L : 3 * L + L + 1])
    assert np.array_equal(read[1], opened.volumes[0].tokens(0)[: L + 1])


def mappings_below(folder):
    with open("/proc/self/maps") as maps:
        return sum(f"{folder}/domains/domain=" in line for line in maps)


def test_mappings_are_bounded_however_many_partitions_there_are(tmp_path, monkeypatch):
    """Linux allows a process 65,530: 4096 domains of 16 parts."""
    folder = make_store(tmp_path, [200 + domain for domain in range(40)])
    monkeypatch.setattr(window_readers, "MOST_MAPPINGS", 12, raising=False)
    opened = DomainStore(folder)
    reader, random = window_reader(opened, L), np.random.Generator(np.random.PCG64(0))
    for _ in range(20):
        domains = random.integers(0, 40, 30)  # more than may be mapped at once, in one read
        rows = random.integers(0, 12, 30)
        found = reader.read(domains, rows)
        for block_steps, domain, row in zip(found, domains, rows, strict=True):
            assert np.array_equal(block_steps, opened.volumes[0].tokens(domain)[row * L : row * L + L + 1])
        assert mappings_below(folder) <= 12
    path = opened.folder / partition_path(7)
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(StoreError, match="domain 7: .* was changed or replaced"):  # mapped again or still
        for domain in range(40):
            reader.read(np.array([domain]), np.array([0]))
        reader.finish()


def test_batches_are_what_the_plan_names(store):
    stream = make_stream(store)
    opened = DomainStore(store)
    for batch in stream.in_process(250, 260):
        step = stream.plan.steps(batch.step, batch.step + 1)
        for slot in range(8):
            start = step.row_TB[0, slot] * L
            expected = opened.volumes[0].tokens(int(step.domain_TB[0, slot]))[start : start + L + 1]
            assert np.array_equal(batch.tokens_BL1[slot], expected)
        assert batch.mixture_B.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
        np.testing.assert_allclose(batch.domain_weights_WK, step.domain_weights(batch.step, 6), rtol=1e-6)


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_resuming_at_every_step_on_any_number_of_ranks(store, expected, world_size):
    stream = make_stream(store, window_steps=7)
    for start in range(30):
        check_from(stream, expected, start, 30, world_size=world_size)


def test_an_elastic_resize_in_mid_window(store, expected):
    stream = make_stream(store)
    assert 37 % stream.block_steps and 61 % stream.block_steps
    for start, stop, world_size in [(0, 37, 2), (37, 61, 1), (61, 90, 8), (90, 100, 4)]:
        check_from(stream, expected, start, stop, world_size=world_size)


def test_a_late_step_is_read_like_the_first(store):
    stream = make_stream(store)
    [batch] = stream.in_process(10**6, 10**6 + 1)
    assert batch.step == 10**6 and batch.tokens_BL1.shape == (8, L + 1)


@pytest.mark.parametrize(
    ("world_size", "window_steps", "task_windows"),
    [(1, None, 64), (2, None, 64), (4, 7, 64), (8, 7, 64), (1, 5, 3), (1, 5, 1)],
)
def test_ray_gives_the_same_batches(
    store, expected, ray_cluster, monkeypatch, world_size, window_steps, task_windows
):
    """From a step within a window, over whole windows and a part of one, however tasks and blocks are cut."""
    monkeypatch.setattr(streaming, "TASK_BLOCKS", task_windows)
    stream = make_stream(store, window_steps=window_steps)
    stop = 5 + 2 * stream.for_rank(0, world_size).block_steps + 3
    check_from(stream, expected, 5, stop, world_size=world_size, ray=True)


@pytest.mark.parametrize(
    ("vocab_size", "length", "window_steps"), [(64, 8, None), (70_000, 64, 3), (64, 1, 40)]
)
def test_tokens_of_any_size_and_number_come_in_whole_windows(
    tmp_path, ray_cluster, vocab_size, length, window_steps
):
    """Ray cuts blocks by their bytes, which tokens of four bytes double, and a few short ones hardly are."""
    store = DomainStore(make_store(tmp_path, [400, 900], vocab_size=vocab_size))
    law = Sparse(support_size=2)
    plan = MixturePlan(store.windows_K(length), law, seed=0, batch_size=8, sequence_length=length)
    stream = MixtureStream(
        store_folder=str(tmp_path), sequence_length=length, plan=plan, window_steps=window_steps
    )
    stop = 4 * stream.block_steps + 1
    check_from(stream, list(stream.in_process(0, stop)), 0, stop, ray=True)


def test_a_stream_that_cannot_be_is_refused(store):
    stream = make_stream(store)
    for rank, world_size in (2, 2), (-1, 2), (0, 0):
        with pytest.raises(ValueError, match=f"there is no rank {rank} of {world_size}"):
            stream.for_rank(rank, world_size)
    planned = MixturePlan(np.array([9]), Sparse(support_size=1), seed=0, batch_size=1, sequence_length=2 * L)
    with pytest.raises(ValueError, match=f"windows of {2 * L} tokens, and the stream reads {L}"):
        MixtureStream(store_folder=str(store), sequence_length=L, plan=planned)


def slow_stream(store):
    return make_stream(store, make_plan(store, cls=SlowStart), window_steps=20, fetchers=2)


def test_blocks_that_overtake_are_put_in_order(store, expected, ray_cluster, monkeypatch):
    monkeypatch.setattr(streaming, "TASK_BLOCKS", 2)
    check_from(slow_stream(store), expected, 0, 400, ray=True)


def test_without_preserve_order_the_order_is_an_error(store, ray_cluster, monkeypatch):
    monkeypatch.setattr(streaming, "TASK_BLOCKS", 2)
    monkeypatch.setattr(streaming, "PRESERVE_ORDER", False)
    with pytest.raises(
        StreamError, match="expected whole steps in order from (20|40) on, rank 0 of 1 received"
    ):
        for _ in range(3):  # on a busy machine the second actor may come too late to overtake the first
            for _ in slow_stream(store).through_ray(0, 400):
                pass


def fetchers():
    """Processes of Ray's actors that fetch, of this process's own cluster."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "Fetch" in " ".join(process.cmdline()):
                found.append(process)
    return found


def test_all_ranks_get_data_where_hardly_a_cpu_is_left(store, expected, ray_cluster):
    """Ranks go in step: none is served after another has finished."""
    import ray

    @ray.remote(num_cpus=3.5)
    class Workers:
        def there(self):
            return True

    workers = Workers.remote()
    assert ray.get(workers.there.remote())
    stream = make_stream(store, window_steps=1)
    with ThreadPoolExecutor(1) as pool:
        served = pool.submit(check_from, stream, expected, 0, 120, world_size=2, ray=True)
        try:
            served.result(timeout=60)
        finally:
            ray.kill(workers)


@pytest.mark.faults
def test_a_killed_fetcher_changes_nothing(store, expected, ray_cluster, monkeypatch):
    """A window takes a fetcher a quarter of a second, so it is killed with work to do, and another one goes on."""
    monkeypatch.setattr(streaming, "TASK_BLOCKS", 4)
    stream, killed = make_stream(store, make_plan(store, cls=Slow), window_steps=5), []
    for batch in stream.through_ray(0, 300):
        assert np.array_equal(batch.tokens_BL1, expected[batch.step].tokens_BL1)
        if batch.step in (30, 150):
            deadline = time.monotonic() + 60
            while not (there := fetchers()):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            killed.append({process.pid for process in there})
            for process in there:
                process.kill()
    assert batch.step == 299
    assert fetchers() and not killed[0] & killed[1]


def test_a_wrong_order_is_an_error(store):
    stream = make_stream(store, window_steps=4)
    [table] = Fetch(stream, 10, 14)(pa.table({"item": [0]}))
    swapped = table.take([8, *range(1, 8), 0, *range(9, 32)])
    for wrong in (swapped, table.slice(0, 31), table.slice(8)):
        with pytest.raises(StreamError, match="expected whole steps in order from 10 on"):
            stream._checked(wrong, 10, 14)
    with pytest.raises(StreamError, match="from 10 on"):
        stream._checked(table, 10, 13)
    assert len(stream._checked(table, 10, 14)) == 32


def test_workers_must_divide_the_batch(store):
    with pytest.raises(ValueError, match="batch_size 8 is not a multiple of the 3 workers"):
        make_stream(store).for_rank(0, 3)


def test_a_store_that_was_rebuilt_is_not_streamed(tmp_path):
    stream = make_stream(store := make_store(tmp_path / "store", [400, 400]), make_plan(store))
    store.rename(tmp_path / "old")
    make_store(tmp_path / "store", [400, 400], seed=1)
    with pytest.raises(StoreError, match="is no longer the store that this run's plan is of"):
        next(stream.in_process(0, 1))


FEW_FILES = """
import resource, sys
from tests.pipeline.stream.test_batches import make_stream
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
import numpy as np
seen, most = set(), 0
for batch in make_stream(sys.argv[1]).in_process(0, 800):
    seen |= set(np.flatnonzero(batch.domain_weights_WK.any(0)))
    if batch.step % 100 == 99:
        most = max(most, sum("part-00000.arrow" in line for line in open("/proc/self/maps")))
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
    with pytest.raises(
        StoreError, match=r"domain [01]: .*domain=000[01]/part-00000.arrow was changed or replaced"
    ):
        list(batches)


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
    with pytest.raises(StoreError, match="domain 0: .*domain=0000/part-00000.arrow was changed or replaced"):
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
    with pytest.raises(StoreError, match=r"domain 1: .*domain=0001"):
        DomainStore(store).volumes[0].tokens(1)
