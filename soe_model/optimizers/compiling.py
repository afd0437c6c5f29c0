"""Decides where torch.compile pays: for a large bank on a GPU, or on a CPU with a C++ compiler."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import cache

import torch

from soe_model.optimizers.tile import update_tile

WORTH_IT = 1 << 24
"""Elements of a bank from which on compiling pays; for a smaller one it takes longer than training gains."""


@cache
def can_compile(device_type: str) -> bool:
    """Whether the compiler is there: Triton for GPUs, a C++ compiler for CPUs."""
    if device_type == "cpu":
        return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++", "c++"))
    try:
        import triton  # noqa: F401  # deptry: ignore[DEP004]
    except ImportError:
        return False
    return True


def compiled(function: Callable, bank: torch.Tensor) -> Callable:
    """`function`, compiled for tiles of `bank` where that pays."""
    if bank.numel() < WORTH_IT or not can_compile(bank.device.type):
        return function
    return torch.compile(function, dynamic=False)


def updating(bank: torch.Tensor) -> Callable[..., None]:
    """The function that updates a tile of `bank`.

    On a GPU with SOE_KERNELS=triton it is our own kernel, otherwise the expressions of tile.py, compiled where that
    pays.
    """
    if bank.device.type == "cuda" and os.environ.get("SOE_KERNELS") == "triton":
        from soe_model.optimizers.kernels import update_tile as kernel

        return kernel
    return compiled(update_tile, bank)
