"""How much memory and how many cores this machine, or our container, may use."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from flows.machine_memory import available_memory, memory_limit
from pipeline.cores import available_cores


def make_machine(root, group, folder, files):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(group + "\n")
    (root / folder).mkdir(parents=True)
    for name, text in files.items():
        (root / folder / name).write_text(text)


@pytest.fixture()
def memory(monkeypatch):
    """Of the machine: 9 MB, of which 8,192,000 bytes are available."""
    found = SimpleNamespace(total=9_000_000, available=8_192_000)
    monkeypatch.setattr("psutil.virtual_memory", lambda: found)


@pytest.mark.parametrize(("limit", "left"), [("max", 8_192_000), ("5000", 5000 - 3000 + 1000)])
def test_memory_in_a_control_group(tmp_path, memory, limit, left):
    files = {"memory.max": limit, "memory.current": "3000", "memory.stat": "anon 2000\ninactive_file 1000\n"}
    make_machine(tmp_path, "0::/a/b", "sys/fs/cgroup/a", files)
    assert available_memory(tmp_path) == left
    assert memory_limit(tmp_path) == (9_000_000 if limit == "max" else 5000)


def test_memory_in_a_control_group_of_version_1(tmp_path, memory):
    files = {
        "memory.limit_in_bytes": "5000",
        "memory.usage_in_bytes": "3000",
        "memory.stat": "total_inactive_file 1000",
    }
    make_machine(tmp_path, "4:memory:/a", "sys/fs/cgroup/memory/a", files)
    assert available_memory(tmp_path) == 3000 and memory_limit(tmp_path) == 5000


@pytest.mark.parametrize(
    ("group", "folder", "files", "cores"),
    [
        ("0::/a/b", "sys/fs/cgroup/a", {"cpu.max": "max 100000"}, 16),
        ("0::/a/b", "sys/fs/cgroup/a", {"cpu.max": "250000 100000"}, 3),
        ("0::/elsewhere", "sys/fs/cgroup", {"cpu.max": "50000 100000"}, 1),
        ("0::/a/b", "sys/fs/cgroup/a", {"cpu.max": "6400000 100000"}, 16),
        ("4:cpu,cpuacct:/a", "sys/fs/cgroup/cpu", {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}, 16),
        ("4:cpu,cpuacct:/a", "sys/fs/cgroup/cpu/a", {"cpu.cfs_quota_us": "200000", "cpu.cfs_period_us": "100000"}, 2),
    ],
)  # fmt: skip
def test_cores_in_a_control_group(tmp_path, monkeypatch, group, folder, files, cores):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)))
    make_machine(tmp_path, group, folder, files)
    assert available_cores(tmp_path) == cores
