"""Pretraining data again: windows of a store's generic mixture."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.stream.replay import generic_windows
from storage_schema.manifest import StoreError
from tests.toy_store import make_store

LENGTH = 10
SIZES = [6000, 0, 2000]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("toy") / "store", SIZES)


def test_windows_are_other_ones_at_each_call_and_the_same_for_a_seed(store):
    take = generic_windows(str(store), LENGTH, seed=3)
    first, second, none = take(100), take(7), take(0)
    assert first.dtype == torch.int64 and first.shape == (100, LENGTH + 1) and len(none) == 0
    assert not torch.equal(first[:7], second)
    assert torch.equal(generic_windows(str(store), LENGTH, seed=3)(107), torch.cat([first, second]))
    assert not torch.equal(generic_windows(str(store), LENGTH, seed=4)(100), first)


def test_domains_come_as_often_as_they_are_large(store):
    """The toy's tokens tell their domain: 1 to 7, 8 to 14 and 15 to 21."""
    windows = generic_windows(str(store), LENGTH)(2000)
    domains = (windows[:, 0].numpy() - 1) // 7
    shares = np.bincount(domains, minlength=3) / len(domains)
    assert shares[1] == 0 and abs(shares[0] - 0.75) < 4 * (0.75 * 0.25 / len(domains)) ** 0.5


def test_a_store_that_is_none_or_too_short_is_named(store, tmp_path):
    with pytest.raises(StoreError, match=str(tmp_path)):
        generic_windows(str(tmp_path), LENGTH)
    with pytest.raises(ValueError, match="every domain is empty at this sequence length"):
        generic_windows(str(store), 7000)
