"""How much memory this machine or its container has, and has left; the same of the nodes of a Ray cluster."""

from __future__ import annotations

from pathlib import Path

import psutil

from pipeline.cores import control_groups

ANSWER_SECONDS = 60.0
"""How long a node may take to say how much memory it has."""


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that the kernel can give without swapping, or that the tightest control group leaves, if that is less.

    Args:
        root: the folder with ``proc/self/cgroup`` and ``sys``.
    """
    groups = control_groups("memory", root)
    left = [folder_left for folder in groups if (folder_left := _left(folder)) is not None]
    return min([psutil.virtual_memory().available, *left])


def memory_limit(root: Path = Path("/")) -> int:
    """Bytes of the machine's memory, or the limit of the tightest control group, if that is less."""
    groups = control_groups("memory", root)
    limits = [limit for folder in groups if (limit := _limit(folder)) is not None]
    return min([psutil.virtual_memory().total, *limits])


def smallest_gpu() -> tuple[str, int] | None:
    """Name and bytes of the smallest GPU that torch sees; None if it sees none."""
    import torch

    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    smallest = min(gpus, key=lambda gpu: gpu.total_memory, default=None)
    return smallest and (smallest.name, smallest.total_memory)


def memory_of_nodes(use_gpu: bool, cores: int = 1) -> list[tuple[int, int]] | None:
    """For each node of the Ray cluster that workers may start on: bytes, and how many workers may start there.

    With `use_gpu` these are the bytes of the node's smallest GPU, else its available memory; a worker has `cores` CPUs
    then. Empty if workers can start
    on this machine only; None if a node does not answer.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if not ray.is_initialized():
        return []
    kind = "GPU" if use_gpu else "CPU"
    of_one = 1 if use_gpu else cores
    places = {
        node["NodeID"]: int(node["Resources"].get(kind, 0)) // of_one
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get(kind, 0) >= of_one
    }
    if places.keys() <= {ray.get_runtime_context().get_node_id()}:
        return []
    ask = ray.remote(num_cpus=0, num_gpus=0.01 if use_gpu else 0, max_retries=0)(_memory_here)
    asked = [
        ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(use_gpu)
        for node in places
    ]
    try:
        found = ray.get(asked, timeout=ANSWER_SECONDS)
    except ray.exceptions.RayError:
        for one in asked:
            ray.cancel(one, force=True)
        return None
    return None if None in found else list(zip(found, places.values(), strict=True))


def _memory_here(use_gpu: bool) -> int | None:
    if not use_gpu:
        return available_memory()
    gpu = smallest_gpu()
    return gpu and gpu[1]


def _limit(folder: Path) -> int | None:
    """The group's limit in bytes; None if it has none."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        try:
            return int((folder / name).read_text())
        except (OSError, ValueError):  # "max" is no number
            continue
    return None


def _left(folder: Path) -> int | None:
    """Bytes that the group may still take, its file cache counted as free; None if it has no limit."""
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
