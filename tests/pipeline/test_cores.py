"""Computing on this machine's cores."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

ROUNDS = 20
SAID = f"""
import resource
import torch
from pipeline.cores import compute_on

def layers():
    kept = [torch.ones(1 << 20) for _ in range(16)]  # 64 MB, taken and freed as a step of a small model does

compute_on(1)
layers()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({ROUNDS}):
    layers()
print(torch.get_num_threads(), (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // {ROUNDS})
"""


def threads_and_faults(**environment: str) -> list[int]:
    """Of a new process: the threads that torch computes on, and page faults for each round."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", SAID],
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return [int(number) for number in done.stdout.split()]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="this system's malloc is not glibc's")
def test_freed_memory_is_not_given_back_and_taken_again():
    threads, faults = threads_and_faults()
    assert threads == 1
    assert faults < 4000  # 64 MB are 16,384 pages of 4 KiB; a busy machine makes some hundreds of its own


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="this system's malloc is not glibc's")
def test_what_the_environment_says_of_malloc_stays():
    asked = {"MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "1048576"}
    # Huge pages make them few on some machines, so they are compared.
    assert threads_and_faults(**asked)[1] > 10 * max(threads_and_faults()[1], 1)
