"""Batches: the windows the plan names, the same for every world size, in process and through Ray Data."""

import numpy as np
import pytest

from pipeline.mixtures import MixturePlan
from pipeline.streaming import MixtureStream, StreamError, WindowReader
from storage_schema.domains import DomainStore, partition_path
from storage_schema.manifest import StoreError
from tests.toy_store import make_store

L = 16


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store"), [400, 0, 17, 16, 900, 333])


def make_stream(store, **changes):
    opened = DomainStore(store)
    settings = dict(seed=3, batch_size=8, mixtures_per_step=4, support_size=2) | changes
    plan = MixturePlan(opened.windows_K(L), store_digest=opened.digest, sequence_length=L, **settings)
    return MixtureStream(store_folder=str(store), sequence_length=L, plan=plan)


def test_a_window_is_the_packed_stream(store):
    opened = DomainStore(store)
    assert opened.windows_K(L).tolist() == [24, 0, 1, 0, 56, 20]  # 16 tokens hold no window of 16 + 1
    values = opened.parts[0].tokens(4)
    read = WindowReader(opened, L).read(np.array([4, 0, 4]), np.array([55, 0, 3]))
    assert np.array_equal(read[0], values[55 * L : 55 * L + L + 1])
    assert np.array_equal(read[2], values[3 * L : 3 * L + L + 1])
    assert np.array_equal(read[1], opened.parts[0].tokens(0)[: L + 1])


def test_batches_are_what_the_plan_names(store):
    stream = make_stream(store)
    opened = DomainStore(store)
    for batch in stream.in_process(250, 260):
        step = stream.plan.steps(batch.step, batch.step + 1)
        for slot in range(8):
            start = step.row_TB[0, slot] * L
            expected = opened.parts[0].tokens(int(step.domain_TB[0, slot]))[start : start + L + 1]
            assert np.array_equal(batch.tokens_BL1[slot], expected)
        assert batch.mixture_B.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
        np.testing.assert_allclose(batch.domain_weights_WK, step.domain_weights(batch.step, 6), rtol=1e-6)


def test_global_batch_does_not_depend_on_the_world_size(store):
    stream = make_stream(store)
    whole = list(stream.in_process(0, 40))
    for world_size in (2, 4, 8):
        ranks = [list(stream.for_rank(r, world_size).in_process(0, 40)) for r in range(world_size)]
        for step, parts in enumerate(zip(*ranks, strict=True)):
            assert np.array_equal(np.concatenate([p.tokens_BL1 for p in parts]), whole[step].tokens_BL1)
            assert np.concatenate([p.mixture_B for p in parts]).tolist() == whole[step].mixture_B.tolist()


def test_resuming_at_every_step_gives_the_same_batches(store):
    stream = make_stream(store)
    whole = list(stream.in_process(0, 30))
    for start in range(30):
        rest = list(stream.in_process(start, 30))
        assert [b.step for b in rest] == list(range(start, 30))
        assert all(
            np.array_equal(a.tokens_BL1, b.tokens_BL1) for a, b in zip(rest, whole[start:], strict=True)
        )


@pytest.mark.parametrize("world_size", [1, 2])
def test_ray_gives_the_same_batches(store, ray_cluster, world_size):
    stream = make_stream(store)
    start, stop = 5, 5 + 2 * stream.window + 3  # a whole number of windows and a part
    for rank in range(world_size):
        mine = stream.for_rank(rank, world_size)
        for expected, found in zip(mine.in_process(start, stop), mine.through_ray(start, stop), strict=True):
            assert expected.step == found.step
            assert np.array_equal(expected.tokens_BL1, found.tokens_BL1)
            assert np.array_equal(expected.domain_weights_WK, found.domain_weights_WK)


def test_a_wrong_order_is_an_error(store):
    from pipeline.streaming import _Fetch

    stream = make_stream(store)
    table = _Fetch(stream).table(10, 14)
    swapped = table.take([8, *range(1, 8), 0, *range(9, 32)])
    with pytest.raises(StreamError, match="expected steps 10 to 13"):
        list(stream._checked(swapped, 10, 14))


def test_workers_must_divide_the_batch(store):
    with pytest.raises(ValueError, match="batch_size 8 is not a multiple of the 3 workers"):
        make_stream(store).for_rank(0, 3)


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
        DomainStore(store).parts[0].tokens(1)
