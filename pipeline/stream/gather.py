"""Copying rows of one size from any addresses in this process's memory: by gather.c if compiled, else by NumPy."""

from __future__ import annotations

import ctypes
from functools import cache

import numpy as np

from storage_schema.compiled import library

_BASE, _END = 1 << 12, 1 << 47
"""Everything that a process can map lies between these addresses."""


def gather(addresses: np.ndarray, length: int, dtype: np.dtype) -> np.ndarray:
    """Copy the rows that begin at these addresses: [len(addresses), length] of `dtype`.

    Args:
        addresses: int64, contiguous, in bytes, each a multiple of the item's size. Nothing is checked: the caller must
            make sure that the memory there is mapped.
    """
    compiled = library("pipeline.stream._gather")
    if compiled is None:
        return _with_numpy(addresses, length, dtype)
    out = np.empty((len(addresses), length), dtype)
    compiled.soe_gather(
        ctypes.c_void_p(out.ctypes.data),
        ctypes.c_void_p(addresses.ctypes.data),
        ctypes.c_int64(len(addresses)),
        ctypes.c_int64(length * dtype.itemsize),
    )
    return out


def _with_numpy(addresses: np.ndarray, length: int, dtype: np.dtype) -> np.ndarray:
    """Index one array that stands for all of memory: making an array per row would cost more than copying the rows."""
    rows = _everything(length * dtype.itemsize, dtype.itemsize)[(addresses - _BASE) // dtype.itemsize]
    return rows.view(dtype).reshape(len(addresses), length)


@cache
def _everything(row_bytes: int, item_bytes: int) -> np.ndarray:
    """An array over the whole address space: its element i is the row that begins at item i."""
    space = (ctypes.c_char * (_END - _BASE)).from_address(_BASE)
    return np.ndarray(
        ((_END - _BASE - row_bytes) // item_bytes,),
        np.dtype((np.void, row_bytes)),
        buffer=space,  # type: ignore[arg-type]
        strides=(item_bytes,),
    )
