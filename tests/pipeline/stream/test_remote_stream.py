"""Batches of a store on S3 that is slow, that fails, and that is rebuilt, beside those of the local store."""

from __future__ import annotations

import shutil
import time

import numpy as np
import pytest

from pipeline.mixtures.meta_distributions import Sparse
from pipeline.mixtures.plan import MixturePlan
from pipeline.places import retries
from pipeline.remote import files as remote_files
from pipeline.remote.store import open_store
from pipeline.stream import batches as streaming
from pipeline.stream.batches import MixtureStream
from storage_schema.domains import DomainStore
from storage_schema.manifest import StoreError
from tests.s3_server import upload
from tests.toy_store import make_store

pytestmark = pytest.mark.usefixtures("in_haste")

L = 64
SIZES = [0, 40, *range(60_000, 82_000, 1000)]
"""Tokens of 24 domains, in 2 or 3 blocks each."""
STEPS = 40
LATENCY = 0.05


@pytest.fixture
def toy(tmp_path):
    """A store whose name no other test has on the server."""
    return make_store(tmp_path / tmp_path.name, SIZES)


@pytest.fixture
def toy_uri(s3, toy):
    return upload(s3, toy)


def stream_of(store, folder, window_steps=16):
    opened = DomainStore(folder)
    plan = MixturePlan(
        opened.windows_K(L),
        Sparse(support_size=4),
        seed=5,
        batch_size=16,
        mixtures_per_step=8,
        store_digest=opened.digest,
        sequence_length=L,
    )
    return MixtureStream(store_folder=str(store), sequence_length=L, plan=plan, window_steps=window_steps)


def check_equal(uri, folder, start=3, stop=STEPS):
    """The batches of steps [start, stop) are those of the local store, bit for bit."""
    found = list(stream_of(uri, folder).in_process(start, stop))
    expected = list(stream_of(folder, folder).in_process(start, stop))
    assert [batch.step for batch in found] == [batch.step for batch in expected] == list(range(start, stop))
    for batch, local in zip(found, expected, strict=True):
        assert batch.tokens_BL1.dtype == local.tokens_BL1.dtype
        assert np.array_equal(batch.tokens_BL1, local.tokens_BL1)
        assert np.array_equal(batch.mixture_B, local.mixture_B)
        assert np.array_equal(batch.domain_weights_WK, local.domain_weights_WK)


@pytest.mark.parametrize("kind", ["busy", "reset", "cut"])
def test_batches_of_a_store_that_is_slow_and_fails_are_the_local_ones(toy_uri, toy, proxy, kind):
    """Every read fails once, and each of a domain in four twice."""

    def rule(method, path, where, seen):
        fails = 2 if int(path.partition("node-")[2][:4] or 0) % 4 == 2 else 1
        return kind if seen < fails and (method == "GET" or kind != "cut") else None

    proxy.rule, proxy.latency = rule, 0.01
    check_equal(toy_uri, toy)
    assert len(proxy.failed) > 70 and set(proxy.failed) == {kind}


def test_batches_of_a_store_that_fails_at_random_and_is_looked_at_at_every_use(
    toy_uri, toy, proxy, monkeypatch
):
    monkeypatch.setattr(remote_files, "CHECK_SECONDS", 0.0)
    monkeypatch.setattr(retries, "ATTEMPTS", 12)
    rng = np.random.Generator(np.random.PCG64(4))
    kinds = ["busy", "reset", "cut", None, None, None, None]

    def rule(method, path, where, seen):
        kind = kinds[rng.integers(len(kinds))]
        return None if kind == "cut" and method == "HEAD" else kind

    proxy.rule, proxy.latency = rule, 0.002
    check_equal(toy_uri, toy)
    assert set(proxy.failed) == {"busy", "reset", "cut"}


def test_reads_of_a_window_go_out_together(toy_uri, toy, proxy, monkeypatch):
    store = open_store(toy_uri)
    monkeypatch.setattr(streaming, "open_store", lambda *_, **__: store)
    proxy.latency = 4 * LATENCY  # much, beside what a busy machine takes
    # Its states, the list's end, its blocks, its state again; then blocks and state alone.
    for a_file in (5, 2):
        store.files.cache._blocks.clear()
        proxy.requests.clear()
        start = time.monotonic()
        list(stream_of(toy_uri, toy, STEPS).in_process(0, STEPS))
        seconds = time.monotonic() - start
        assert len(proxy.requests) >= 20 * a_file and proxy.of("/node-", "HEAD") >= 20
        assert seconds < len(proxy.requests) * proxy.latency / 2


@pytest.mark.parametrize("arrived", ["all", "partitions"])
def test_a_store_rebuilt_under_a_running_stream_is_named(s3, toy_uri, toy, monkeypatch, arrived):
    """Domains of the same sizes, other tokens: also while the manifest is still the former one."""
    monkeypatch.setattr(remote_files, "CHECK_SECONDS", 0.0)
    batches = stream_of(toy_uri, toy, window_steps=1).in_process(0, STEPS)
    given = [next(batches)]
    stream = stream_of(toy_uri, toy)
    shutil.rmtree(toy)
    make_store(toy, SIZES, seed=1)
    if arrived == "partitions":
        (toy / "domains/manifest.json").rename(toy / "manifest.json")
    upload(s3, toy)
    # A manifest has its stages' times: another size, or only another state. A partition may be read before it is asked.
    named = "domains/(manifest.json has .* bytes instead of|[a-z0-9-=/]*.(json|arrow) was replaced while it was read)"
    with pytest.raises(StoreError, match=f"{toy_uri}/{named}"):
        given.extend(batches)
    if arrived == "all":
        assert len(given) == 1
        with pytest.raises(StoreError, match="is no longer the store that this run's plan is of"):
            next(stream.in_process(1, 2))
