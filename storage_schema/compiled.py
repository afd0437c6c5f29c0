"""Our few functions in C. pip compiles them if it finds a compiler; without one, Python code computes the same."""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache


@cache
def library(module: str) -> ctypes.CDLL | None:
    """The extension of that name, such as ``soe_model.files._exact_sum``; None if it was not compiled."""
    spec = importlib.util.find_spec(module)
    return ctypes.CDLL(spec.origin) if spec is not None and spec.origin else None
