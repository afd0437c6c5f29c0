"""How fast an instance is put together from a bank on disk, beside what the disk and a copy in memory allow.

    python -m tests.benchmarks.specialists --json specialists.json

*Cold*: the page cache holds nothing of the bank. *Warm*: it holds all, this process has not mapped it yet. *Resident*:
mapped and touched before. The rates of reading and copying are measured in turn with ours, in every round, with as many
threads. A bank of random experts is made in --folder and removed afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from soe_model.files.bank_files import SHARED, BankFiles, expert_file
from soe_model.files.exact_sum import compiled
from soe_model.model.flat_module import empty_instances

BLOCK = 8 << 20
PAPER_BYTES = 4 * 128 * 110e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--params", type=int, default=16_000_000, help="of one model")
    parser.add_argument("--instances", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", default=None)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        make_bank(Path(folder), arguments.experts, arguments.params)
        found = measure(Path(folder), arguments)
    print(json.dumps(found, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


def make_bank(folder: Path, experts: int, params: int) -> None:
    """Files as a soup has them, of several tensors each."""
    parts = [params // 2, params // 4, params - params // 2 - params // 4]
    for number in range(-1, experts):
        generator = torch.Generator().manual_seed(number + 1)
        tensors = {f"t{i}": torch.randn(size, generator=generator) for i, size in enumerate(parts)}
        save_file(tensors, folder / (SHARED if number < 0 else expert_file(number)))
    os.sync()


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    bank_bytes = 4 * arguments.params * arguments.experts
    coefficients = torch.randn(
        arguments.instances, arguments.experts, generator=torch.Generator().manual_seed(0)
    )
    seconds: dict[str, list[float]] = {}
    for _ in range(arguments.rounds):
        for name, run in runs(folder, coefficients, arguments).items():
            seconds.setdefault(name, []).append(run())
    rates = {name: bank_bytes / median(of) / 1e9 for name, of in seconds.items()}
    ratios = {
        "one, cold, of reading": rates["one, cold"] / rates["read, cold"],
        "one, warm, of copying": rates["one, warm"] / rates["copy, warm"],
        "one, resident, of copying": rates["one, resident"] / rates["copy, resident"],
        **{
            f"{arguments.instances} over one, {state}": rates[f"one, {state}"] / rates[f"all, {state}"]
            for state in ("cold", "warm", "resident")
        },
    }
    return {
        "machine": {"cores": os.cpu_count(), "processor": platform.processor(), "torch": torch.__version__},
        "experts": arguments.experts,
        "params": arguments.params,
        "bank_GB": bank_bytes / 1e9,
        "instances": arguments.instances,
        "compiled": compiled() is not None,
        "threads": torch.get_num_threads(),
        "seconds": {name: [round(s, 4) for s in of] for name, of in seconds.items()},
        "median_GB_per_second": rates,
        "ratios": ratios,
        "peak_anonymous_models": get_context("spawn")
        .Pool(1)
        .apply(peak_memory, (folder, coefficients[:1], arguments)),
        "arithmetic_paper_bank_seconds": {
            state: PAPER_BYTES / 1e9 / rates[f"one, {state}"] for state in ("cold", "warm", "resident")
        },
    }


def runs(folder: Path, coefficients: torch.Tensor, arguments: argparse.Namespace) -> dict[str, Any]:
    """What is timed in each round, in this order."""
    one = coefficients[:1]

    def cold(what):
        def run():
            drop(folder)
            return what()

        return run

    def make(some):
        return lambda: timed(lambda: combine_from(folder, some, arguments))

    def resident(some):
        def run():
            bank = BankFiles(folder, arguments.experts)
            out = empty_instances(len(some), bank.num_params)
            bank.combine(some, out)
            return timed(lambda: bank.combine(some, out))

        return run

    return {
        "read, cold": cold(lambda: timed(lambda: read_all(folder))),
        "one, cold": cold(make(one)),
        "all, cold": cold(make(coefficients)),
        "copy, warm": lambda: timed(lambda: copy_all(BankFiles(folder, arguments.experts))),
        "one, warm": make(one),
        "all, warm": make(coefficients),
        "copy, resident": lambda: copy_resident(folder, arguments),
        "one, resident": resident(one),
        "all, resident": resident(coefficients),
    }


def combine_from(folder: Path, coefficients: torch.Tensor, arguments: argparse.Namespace) -> torch.Tensor:
    bank = BankFiles(folder, arguments.experts)
    out = empty_instances(len(coefficients), bank.num_params)
    bank.combine(coefficients, out)
    return out


def timed(run) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def drop(folder: Path) -> None:
    """Nothing of the bank in the page cache."""
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_all(folder: Path) -> None:
    """Every expert into one buffer a thread, as fast as the disk gives it."""

    def read(path: Path) -> None:
        buffer = bytearray(BLOCK)
        with open(path, "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            while file.readinto(buffer):
                pass

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(read, sorted(folder.glob("expert-*"))))


def copy_all(bank: BankFiles) -> None:
    """Every expert copied over one model's memory."""
    threads = torch.get_num_threads()
    out = np.empty(bank.num_params, np.float32)
    edges = np.linspace(0, bank.num_params, threads + 1).astype(int)

    def copy(part: int) -> None:
        span = slice(edges[part], edges[part + 1])
        for expert in bank.experts:
            np.copyto(out[span], expert.flat_P[span])

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(copy, range(threads)))


def copy_resident(folder: Path, arguments: argparse.Namespace) -> float:
    bank = BankFiles(folder, arguments.experts)
    copy_all(bank)
    return timed(lambda: copy_all(bank))


def peak_memory(folder: Path, coefficients: torch.Tensor, arguments: argparse.Namespace) -> float:
    """Of the process's own memory (not of the page cache that it maps), in models, sampled while one is made; in a
    process of its own, since memory that was used before is used again.
    """
    before, peak, done = anonymous_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, anonymous_bytes())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    combine_from(folder, coefficients, arguments)
    done.set()
    watcher.join()
    return (peak - before) / (4 * arguments.params)


def anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


if __name__ == "__main__":
    main()
