"""How much memory this machine, or the container that we are in, still has."""

from __future__ import annotations

from pathlib import Path


def available_memory(root: Path = Path("/")) -> int:
    """Bytes: what the kernel can give without swapping, or what the tightest control group leaves, if that is less.

    Args:
        root: where ``proc`` and ``sys`` lie.
    """
    lines = [line.split() for line in (root / "proc/meminfo").read_text().splitlines()]
    kilobytes = {line[0].rstrip(":"): int(line[1]) for line in lines}
    left = [folder_left for folder in _groups(root) if (folder_left := _left(folder)) is not None]
    return min([1024 * kilobytes["MemAvailable"], *left])


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
