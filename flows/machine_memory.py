"""How much memory this machine, or the container that we are in, has, and has left."""

from __future__ import annotations

from pathlib import Path

import psutil

from pipeline.cores import control_groups


def available_memory(root: Path = Path("/")) -> int:
    """Bytes: what the kernel can give without swapping, or what the tightest control group leaves, if that is less.

    Args:
        root: where ``proc/self/cgroup`` and ``sys`` lie.
    """
    groups = control_groups("memory", root)
    left = [folder_left for folder in groups if (folder_left := _left(folder)) is not None]
    return min([psutil.virtual_memory().available, *left])


def memory_limit(root: Path = Path("/")) -> int:
    """Bytes: the machine's memory, or the limit of the tightest control group, if that is less."""
    groups = control_groups("memory", root)
    limits = [limit for folder in groups if (limit := _limit(folder)) is not None]
    return min([psutil.virtual_memory().total, *limits])


def _limit(folder: Path) -> int | None:
    """The group's limit in bytes; None where there is none."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        try:
            return int((folder / name).read_text())
        except (OSError, ValueError):  # "max" is no number
            continue
    return None


def _left(folder: Path) -> int | None:
    """Bytes below the group's limit, its file cache counted as free; None where there is no limit."""
    for limit, usage, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            text = (folder / limit).read_text().strip()
            if text == "max":
                return None
            used = int((folder / usage).read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            return max(int(text) - used + int(stat.get(cache, 0)), 0)
        except (OSError, ValueError):
            continue
    return None
