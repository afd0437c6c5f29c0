"""Computing on this machine's cores."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from pipeline import cores

VARIABLES = ("GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
ROUNDS = 20
PROGRAM = f"""
import ctypes
import resource
import torch
from pipeline.cores import compute_on

def layers():
    kept = [torch.ones(1 << 20) for _ in range(16)]  # 64 MB, taken and freed as a step of a small model does

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # no huge pages, which hide faults
compute_on(1)
layers()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({ROUNDS}):
    layers()
faults = (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / {ROUNDS}
print(torch.get_num_threads(), faults * resource.getpagesize() / (64 << 20))
"""

with_glibc = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallopt"), reason="this system's malloc is not glibc's"
)


def threads_and_faults(**environment: str) -> tuple[int, float]:
    """Of a new process: the threads that torch computes on, and which share of its memory faults in each round."""
    inherited = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    threads, share = done.stdout.split()
    return int(threads), float(share)


@with_glibc
def test_freed_memory_is_not_given_back_and_taken_again():
    threads, faults = threads_and_faults()
    assert threads == 1
    assert faults < 0.25  # 1 without; a busy machine makes some of its own


@with_glibc
def test_what_the_environment_says_of_malloc_stays():
    assert threads_and_faults(MALLOC_MMAP_THRESHOLD_="1048576")[1] > 0.5
    assert threads_and_faults(GLIBC_TUNABLES="glibc.malloc.mmap_threshold=1048576")[1] > 0.5


class Libc:
    """A system library whose mallopt takes no more than `most` bytes."""

    def __init__(self, most: int):
        self.most, self.asked = most, []

    def mallopt(self, parameter: int, value: int) -> int:
        self.asked.append((parameter, value))
        return int(value <= self.most)


def test_a_threshold_that_is_refused_is_not_followed_by_the_other(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    threads = torch.get_num_threads()
    for most, asked in ((1 << 30, 2), (16 << 20, 1)):
        library = Libc(most)
        monkeypatch.setattr(cores, "ctypes", SimpleNamespace(CDLL=lambda name, library=library: library))
        cores.compute_on(threads)
        assert len(library.asked) == asked
        assert library.asked[0] == (-3, 32 << 20)  # older releases of glibc take no more
