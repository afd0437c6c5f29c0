"""Batches: the windows the plan names, the same for every world size, in process and through Ray Data."""

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pyarrow as pa
import pytest

from pipeline.mixtures.meta_distributions import Sparse
from pipeline.mixtures.plan import MixturePlan
from pipeline.stream import batches as streaming
from pipeline.stream.batches import Fetch, MixtureStream, StreamError
from storage_schema.domains import DomainStore
from tests.pipeline.stream.toy_stream import L, make_plan, make_stream
from tests.slow_plan import Slow, SlowStart
from tests.toy_store import make_store


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
    [
        (1, None, 64),
        (4, 7, 64),
        (1, 5, 3),
        (1, 5, 1),
        *(pytest.param(*case, marks=pytest.mark.long) for case in [(2, None, 64), (8, 7, 64)]),
    ],
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
