"""How fast the stream is: plan and gather in process, and through Ray Data into Ray Train workers.

    python -m tests.benchmarks.streaming --json result.json

A store of 4096 domains of 64 windows of 1024 random tokens each (0.5 GB, kept under SOE_HOME), batches of 128
sequences from mixtures of 4 domains, another one every step. Parts measured:

- in process, one thread: the plan; plan and gather with the page cache warm and cold; beside them copies of as many
  bytes: windows in one piece each, one after the other from as much memory as the store is, into one array and into
  new ones as the gather's are; the same rows one by one (2 KB pieces from all over the store).
- in Ray Train workers, through Ray Data: steps per second for one and two workers and several window sizes, from the
  first block that Ray fetched on and over all, and the seconds to the first batch and to that block. Medians of runs
  that are taken in turn.
- a resume at step 10^6 beside one at step 0; memory and mappings over many steps.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from flows.cluster import session
from pipeline.cores import available_cores
from pipeline.mixtures.meta_distributions import Sparse
from pipeline.mixtures.plan import MixturePlan
from pipeline.stream.batches import Fetch, MixtureStream
from storage_schema.domains import DomainStore
from storage_schema.layout import home
from tests.toy_store import write_store

K, WINDOWS, L, B, S = 4096, 64, 1024, 128, 4
STEPS, COLD_STEPS = 40_000, 250
COPIES = ("copy", "new_copy", "row_copy")


def random_store() -> Path:
    """The store, made once and kept."""
    folder = home() / "benchmarks" / f"stream-{K}x{WINDOWS}x{L}-nodes"
    if not (folder / "domains").exists():
        random = np.random.Generator(np.random.Philox(0))
        sizes = [WINDOWS * L + 1] * K
        write_store(folder, [random.integers(0, 64, size, np.uint16) for size in sizes], per_file=64)
    return folder


def stream_of(folder: Path, **settings) -> MixtureStream:
    store = DomainStore(folder)
    plan = MixturePlan(
        store.windows_K(L),
        Sparse(support_size=S),
        seed=0,
        batch_size=B,
        store_digest=store.digest,
        sequence_length=L,
    )
    return MixtureStream(store_folder=str(folder), sequence_length=L, plan=plan, **settings)


def in_process(stream: MixtureStream, runs: int) -> dict[str, float]:
    """Steps a second of each part, the median of the runs; `cold` is the first pass after dropping the cache."""
    starts = range(0, STEPS, stream.block_steps)
    ends = [min(start + stream.block_steps, STEPS) for start in starts]
    cold = _cold(stream)
    rates: dict[str, list[float]] = {name: [] for name in ("plan", "gather", "stream", *COPIES)}
    fetch = Fetch(stream)
    for _ in range(runs + 1):  # the first maps every file and is not counted
        plans = [stream.plan.steps(start, end) for start, end in zip(starts, ends, strict=True)]
        begun = time.perf_counter()
        for start, end in zip(starts, ends, strict=True):
            stream.plan.steps(start, end)
        planned = time.perf_counter()
        for steps in plans:
            fetch.reader.read(steps.domain_TB.reshape(-1), steps.row_TB.reshape(-1))
        gathered = time.perf_counter()
        for start, end in zip(starts, ends, strict=True):
            fetch.tokens(stream.plan.steps(start, end))
        streamed = time.perf_counter()
        rates["plan"].append(STEPS / (planned - begun))
        rates["gather"].append(STEPS / (gathered - planned))
        rates["stream"].append(STEPS / (streamed - gathered))
        for name, rate in _copies(stream, plans).items():
            rates[name].append(rate)
    return {name: statistics.median(values[1:]) for name, values in rates.items()} | {"cold": cold}


def _cold(stream: MixtureStream) -> float:
    """Steps a second with nothing of the store in the page cache."""
    for path in (Path(stream.store_folder) / "domains").rglob("*.arrow"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    begun = time.perf_counter()
    for _ in stream.in_process(0, COLD_STEPS):
        pass
    return COLD_STEPS / (time.perf_counter() - begun)


def _copies(stream: MixtureStream, plans) -> dict[str, float]:
    """Steps a second of copying a step's bytes: in one piece into one array, into new ones, and row by row.

    The rows' addresses are worked out before, and the C library copies them: nothing but its own call is ours.
    """
    size = 2 * (L + 1)
    [volume] = stream.open_store().volumes
    mapped = [volume.tokens(domain) for domain in range(K)]
    bases = np.array([tokens.ctypes.data for tokens in mapped])
    memory, target = np.ones(K * WINDOWS * size, np.uint8), np.ones(stream.block_steps * B * size, np.uint8)
    starts = (np.arange(len(plans)) * len(target) % (len(memory) - len(target))).tolist()
    pieces = [
        memory[start : start + steps.domain_TB.size * size]
        for start, steps in zip(starts, plans, strict=True)
    ]
    seconds = dict.fromkeys(COPIES, 0.0)
    begun = time.perf_counter()
    for piece in pieces:
        target[: len(piece)] = piece
    seconds["copy"] = time.perf_counter() - begun
    begun = time.perf_counter()
    for piece in pieces:
        piece.copy()
    seconds["new_copy"] = time.perf_counter() - begun
    move = ctypes.memmove
    for steps in plans:
        sources = (bases[steps.domain_TB] + steps.row_TB * (2 * L)).reshape(-1).tolist()
        targets = (target.ctypes.data + np.arange(len(sources)) * size).tolist()
        begun = time.perf_counter()
        for to, at in zip(targets, sources, strict=True):
            move(to, at, size)
        seconds["row_copy"] += time.perf_counter() - begun
    return {name: STEPS / taken for name, taken in seconds.items()}


def _consume(config: dict) -> None:
    """The training loop of a worker that trains nothing."""
    import ray.train
    import torch

    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    stream: MixtureStream = ray.train.get_dataset_shard("train")
    steps = config["stop"] - config["start"]
    begun, marks = time.perf_counter(), {}
    for number, batch in enumerate(stream.through_ray(config["start"], config["stop"])):
        tokens = torch.from_numpy(batch.tokens_BL1)
        if number == 0:
            marks["first"] = time.perf_counter()
        elif number == stream.block_steps:
            marks["first_of_ray"] = time.perf_counter()
    ended = time.perf_counter()
    assert batch.step == config["stop"] - 1 and tokens.shape == (stream.share, L + 1)
    row = {name: mark - begun for name, mark in marks.items()}
    row["rate"] = (steps - stream.block_steps) / (ended - marks["first_of_ray"])
    row["rate_over_all"] = steps / (ended - begun)
    if stream.rank == 0:
        Path(config["out"]).write_text(json.dumps(row))


def through_ray(stream: MixtureStream, workers: int, *, start: int = 0, steps: int) -> dict[str, float]:
    """Of the first worker: steps per second from Ray's first batch on, seconds to the first batches."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from flows.training.mixture_data import MixtureDataConfig

    out = home() / "benchmarks" / "through-ray.json"
    TorchTrainer(
        _consume,
        train_loop_config={"start": start, "stop": start + steps, "out": str(out)},
        datasets={"train": lambda: stream},
        dataset_config=MixtureDataConfig(),
        scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(storage_path=str(home() / "benchmarks" / "runs")),
    ).fit()
    return json.loads(out.read_text())


def over_many_steps(stream: MixtureStream, steps: int) -> dict[str, float]:
    """Resident memory (the files' pages apart) and mappings after a tenth of the steps, and after all of them."""

    def now() -> tuple[int, int]:
        status = Path("/proc/self/status").read_text()
        anonymous = int(status.split("RssAnon:")[1].split()[0]) << 10
        return anonymous, Path("/proc/self/maps").read_text().count("/node-")

    for batch in stream.in_process(0, steps):
        if batch.step == steps // 10:
            before = now()
    after = now()
    return {"memory_growth": after[0] / before[0], "maps_before": before[1], "memory_mb": after[0] / 1e6}


def _summary(stream: MixtureStream, cell: tuple, rows: list[dict[str, float]]) -> dict[str, Any]:
    """A line of the table: the medians of its runs, printed."""
    workers, block_steps, start = cell
    row = {name: statistics.median(run[name] for run in rows) for name in rows[0]}
    row |= {
        "workers": workers,
        "window": block_steps or stream.for_rank(0, workers).block_steps,
        "start": start,
    }
    print(", ".join(f"{name} {value:,.2f}" for name, value in row.items()), flush=True)
    return row | {"runs": rows}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--ray-steps", type=int, default=30_000)
    parser.add_argument("--ray-runs", type=int, default=3)
    parser.add_argument("--many-steps", type=int, default=100_000)
    parser.add_argument("--windows", type=int, nargs="+", default=[8, 16, 32, 64, 128])
    parser.add_argument("--json", help="write the result there")
    options = parser.parse_args()
    folder = random_store()
    stream = stream_of(folder)
    found = {"in_process": in_process(stream, options.runs)}
    rates = found["in_process"]
    print(
        "in process, steps/s: " + ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items()), flush=True
    )
    found["ratios"] = {name: rates["gather"] / rates[name] for name in COPIES}
    print(", ".join(f"gather / {name} {ratio:.0%}" for name, ratio in found["ratios"].items()), flush=True)
    found["many_steps"] = over_many_steps(stream, options.many_steps)
    print(f"over {options.many_steps:,} steps: {found['many_steps']}", flush=True)
    session.connect()
    cells = [(1, block_steps, 0) for block_steps in options.windows] + [
        (2, None, 0),
        (1, None, 0),
        (1, None, 10**6),
    ]
    runs: dict[tuple, list[dict[str, float]]] = {cell: [] for cell in cells}
    for _ in range(options.ray_runs):
        for (workers, block_steps, start), rows in runs.items():
            cell = stream_of(folder, window_steps=block_steps)
            rows.append(through_ray(cell, workers, start=start, steps=options.ray_steps))
    body: dict[str, Any] = found | {
        "through_ray": [_summary(stream, cell, rows) for cell, rows in runs.items()]
    }
    if options.json:
        body |= {"machine": f"{platform.machine()}, {available_cores()} cores"}
        Path(options.json).write_text(json.dumps(body, indent=1))


if __name__ == "__main__":
    main()
