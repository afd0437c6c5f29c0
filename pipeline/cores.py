"""How many CPU cores this process may use, as its affinity and control groups say, and how torch uses them."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Iterator
from pathlib import Path

_MALLOPT = {"MALLOC_MMAP_THRESHOLD_": (-3, 32 << 20), "MALLOC_TRIM_THRESHOLD_": (-1, 512 << 20)}
"""Variable of the environment → glibc's number of the parameter, and the bytes that it is set to. Freed blocks of 32 MB
(older releases of glibc take no more) still go back to the kernel, and the heap's end when half a gigabyte is free.
"""


def compute_on(cores: int) -> None:
    """Let torch compute on so many cores in this process, whose freed memory stays with it.

    A layer of a small model frees some megabytes that the next one takes again. glibc gives them back to the kernel in
    between, and up to a third of the step goes into page faults
    (tests/benchmarks/records/2026-11-30-freed-memory.md). Where the environment sets malloc's thresholds, they stay.
    """
    import torch

    torch.set_num_threads(cores)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent where malloc is not glibc's
    if mallopt is None or "GLIBC_TUNABLES" in os.environ or any(name in os.environ for name in _MALLOPT):
        return
    for parameter, value in _MALLOPT.values():
        # Setting either stops glibc from raising both by itself: where one is refused, the other is not set.
        if not mallopt(parameter, value):
            return


def available_cores(root: Path = Path("/")) -> int:
    """The number of cores this process may use: those it may run on, or fewer if a control group limits its CPU time.

    A fraction of a core counts as a whole one.

    Args:
        root: the folder that holds ``proc`` and ``sys``.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    granted = [time for folder in control_groups("cpu", root) if (time := _granted(folder)) is not None]
    return max(1, math.ceil(min([cores, *granted])))


def control_groups(controller: str, root: Path = Path("/")) -> Iterator[Path]:
    """The folders of this process's control groups (version 2, and version 1's ``cpu`` or ``memory``), up to the top.

    In a container the top folder is often the container's own, whatever path the process is given.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / (controller if controllers else "")
        group = top / path.lstrip("/")
        yield from (folder for folder in (group, *group.parents) if folder == top or top in folder.parents)


def _granted(folder: Path) -> float | None:
    """Seconds of CPU per second; None if there is no limit."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    try:
        return int(quota) / int(period) if int(quota) > 0 else None
    except (ValueError, ZeroDivisionError):  # "max"
        return None
