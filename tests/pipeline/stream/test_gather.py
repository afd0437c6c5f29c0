"""Rows from anywhere in memory, in C and with NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.stream import gather as module
from pipeline.stream.gather import gather
from tests.extras import needs_compiled


@pytest.fixture(params=["C", "NumPy"])
def either(request, monkeypatch):
    if request.param == "NumPy":
        monkeypatch.setattr(module, "library", lambda name: None)
    else:
        needs_compiled("pipeline.stream._gather")


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
@pytest.mark.parametrize("length", [1, 17, 1025])
@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 200])
def test_rows_are_copied_in_their_order(either, dtype, length, count):
    """Of two arrays, and also those at their very ends."""
    random = np.random.default_rng(count)
    arrays = [random.integers(0, 60_000, 5000).astype(dtype) for _ in range(2)]
    starts = np.concatenate(
        [random.integers(0, 5001 - length, count // 2), np.full(count - count // 2, 5000 - length)]
    )
    of = random.integers(0, 2, count)
    addresses = np.array([arrays[a].ctypes.data for a in of], np.int64) + starts * arrays[0].itemsize
    found = gather(addresses, length, np.dtype(dtype))
    assert found.dtype == dtype and found.shape == (count, length) and found.flags.c_contiguous
    for row, a, start in zip(found, of, starts, strict=True):
        assert np.array_equal(row, arrays[a][start : start + length])
