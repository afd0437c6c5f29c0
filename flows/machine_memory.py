"""How much memory this machine, or the container that we are in, still has; and the nodes of the Ray cluster."""

from __future__ import annotations

from pathlib import Path

ANSWER_SECONDS = 60.0
"""A node that does not say so long how much memory it has is not waited for."""


def available_memory(root: Path = Path("/")) -> int:
    """Bytes: what the kernel can give without swapping, or what the tightest control group leaves, if that is less.

    Args:
        root: where ``proc`` and ``sys`` lie.
    """
    lines = [line.split() for line in (root / "proc/meminfo").read_text().splitlines()]
    kilobytes = {line[0].rstrip(":"): int(line[1]) for line in lines}
    left = [folder_left for folder in _groups(root) if (folder_left := _left(folder)) is not None]
    return min([1024 * kilobytes["MemAvailable"], *left])


def smallest_gpu() -> tuple[str, int] | None:
    """Name and bytes of the smallest GPU that torch sees here; None if it sees none."""
    import torch

    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    smallest = min(gpus, key=lambda gpu: gpu.total_memory, default=None)
    return smallest and (smallest.name, smallest.total_memory)


def memory_of_nodes(use_gpu: bool) -> list[tuple[int, int]] | None:
    """Bytes, and places for workers, of each node of a Ray cluster that workers may start on: of a GPU, or available.

    Empty where workers can start on this machine only; None if a node does not say.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if not ray.is_initialized():
        return []
    kind = "GPU" if use_gpu else "CPU"
    places = {
        node["NodeID"]: int(node["Resources"].get(kind, 0))
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get(kind, 0) >= 1
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


def _groups(root: Path) -> list[Path]:
    """Folders of this process's memory control groups, version 2 and 1, up to the topmost."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    folders = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        group = top / path.lstrip("/")
        folders += [folder for folder in (group, *group.parents) if folder == top or top in folder.parents]
    return folders


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
