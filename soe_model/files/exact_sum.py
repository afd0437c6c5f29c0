"""Sums of experts that have the same bits on every machine.

The rule: start with the base; for each row in order, if its coefficient is not zero, add float32(coefficient * row) in
float32. The result does not depend on the number of instances made at once, on threads, or on the machine. exact_sum.c
does it where there was a compiler at installation, NumPy elsewhere.

Legend: W instances, N rows (experts), P parameters of one model.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from storage_schema.compiled import library

Task = Callable[[int, int], None]
"""A function that combines columns [start, stop)."""
COLUMNS = 1 << 18
"""Columns per call: a megabyte of each row."""
_TILE = 1 << 14


def combine(
    base_P: np.ndarray,
    rows_NP: Sequence[np.ndarray],
    coefficients_WN: np.ndarray,
    out_WP: np.ndarray,
    *,
    threads: int,
    ahead: Callable[[int, int], None] = lambda start, stop: None,
) -> None:
    """Write ``base + sum_j coefficients[w, j] * rows[j]`` to ``out[w]``, float32.

    Args:
        base_P, rows_NP: contiguous float32 of P elements each; they may be maps of files.
        ahead: called before columns [start, stop) are read, so that it can have them fetched.
    """
    coefficients_WN = np.ascontiguousarray(coefficients_WN, np.float32)
    library = compiled()
    columns = [(start, min(start + COLUMNS, len(base_P))) for start in range(0, len(base_P), COLUMNS)]
    if library is None:
        task = _with_numpy(base_P, rows_NP, coefficients_WN, out_WP)
    else:
        task = _with_library(library, base_P, rows_NP, coefficients_WN, out_WP)

    def one(span: tuple[int, int]) -> None:
        ahead(*span)
        task(*span)

    if threads <= 1 or len(columns) == 1:
        for span in columns:
            one(span)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, columns))


def compiled() -> ctypes.CDLL | None:
    """exact_sum.c as a library; None if there was no C compiler when the package was installed."""
    return library("soe_model.files._exact_sum")


def _with_library(
    library: ctypes.CDLL,
    base_P: np.ndarray,
    rows_NP: Sequence[np.ndarray],
    coefficients_WN: np.ndarray,
    out_WP: np.ndarray,
) -> Task:
    num_instances, num_rows = coefficients_WN.shape
    rows, out = _addresses(rows_NP), _addresses(out_WP)

    def task(start: int, stop: int) -> None:
        library.soe_combine(
            out,
            ctypes.c_int64(num_instances),
            ctypes.c_void_p(base_P.ctypes.data),
            rows,
            ctypes.c_void_p(coefficients_WN.ctypes.data),
            ctypes.c_int64(num_rows),
            ctypes.c_int64(start),
            ctypes.c_int64(stop),
        )

    return task


def _addresses(arrays: Sequence[np.ndarray] | np.ndarray) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))


def _with_numpy(
    base_P: np.ndarray, rows_NP: Sequence[np.ndarray], coefficients_WN: np.ndarray, out_WP: np.ndarray
) -> Task:
    def task(start: int, stop: int) -> None:
        product = np.empty(_TILE, np.float32)
        for first in range(start, stop, _TILE):
            tile = slice(first, min(first + _TILE, stop))
            part = product[: tile.stop - tile.start]
            out_WP[:, tile] = base_P[tile]
            for j, row_P in enumerate(rows_NP):
                for w in np.flatnonzero(coefficients_WN[:, j]):
                    np.multiply(row_P[tile], coefficients_WN[w, j], out=part)
                    out_WP[w, tile] += part

    return task
