"""How a soup's step grows: with the experts, the tokens of a step and the ranks.

python -m tests.benchmarks.bank --only scaling --optimizers adam --plot scaling.png
"""

from __future__ import annotations

import argparse
import socket
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing as mp

EXPERTS, BATCHES, RANKS = (0, 8, 16, 32, 64, 128), (4, 8, 16, 32, 64), (1, 2)


def add_scaling(options: argparse.Namespace) -> dict:
    """Seconds of a step against each of the three, and the line through those of the experts."""
    from tests.benchmarks.bank import make_trainer, seconds, step_of

    optimizer = options.optimizers[0]

    def at(num_experts: int, **changed) -> float:
        varied = argparse.Namespace(**vars(options) | changed)
        trainer = make_trainer(num_experts, varied, optimizer=optimizer)
        return seconds(step_of(trainer), options.device, repeat=options.repeat)

    found = {
        "params": make_trainer(0, options).backbone.num_params,
        "experts": {n: at(n) for n in EXPERTS},
        "sequences": {b: {"plain": at(0, batch=b), "soup": at(options.experts, batch=b)} for b in BATCHES},
        "ranks": {r: at_ranks(options, r) for r in RANKS} if options.device == "cpu" else {},
    }
    slope, start = np.polyfit(list(found["experts"]), list(found["experts"].values()), 1)
    found |= {"seconds_an_expert": slope, "seconds_without": start}
    for name, values in found.items():
        print(f"  {name}: {values}")
    if options.plot:
        draw(found, options)
    return found


def at_ranks(options: argparse.Namespace, ranks: int) -> float:
    """Seconds of a step on so many processes of one thread each (gloo)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = mp.get_context("spawn").SimpleQueue()
    mp.spawn(_rank, (ranks, port, options, results), nprocs=ranks)
    return results.get()


def _rank(rank: int, ranks: int, port: int, options: argparse.Namespace, results) -> None:
    import torch.distributed as dist

    from tests.benchmarks.bank import make_trainer, seconds, step_of

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    trainer = make_trainer(options.experts, options, optimizer=options.optimizers[0])
    taken = seconds(step_of(trainer, rank=rank, ranks=ranks), options.device, repeat=options.repeat)
    if rank == 0:
        results.put(taken)
    dist.destroy_process_group()


def draw(found: dict, options: argparse.Namespace) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    n = np.array(list(found["experts"]))
    left.plot(n, list(found["experts"].values()), "o")
    left.plot(n, found["seconds_without"] + found["seconds_an_expert"] * n, "-", color="grey")
    left.set(xlabel="experts", ylabel="seconds a step", title=f"P = {found['params']:,}", ylim=0)
    tokens = [b * options.length for b in found["sequences"]]
    for name in ("plain", "soup"):
        middle.plot(tokens, [row[name] for row in found["sequences"].values()], "o-", label=name)
    middle.set(xlabel="tokens per step", title=f"{options.experts} experts", xlim=0, ylim=0)
    middle.legend(frameon=False)
    right.bar([str(r) for r in found["ranks"]], list(found["ranks"].values()), width=0.5)
    right.set(xlabel="ranks of one thread", title="the same batch")
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(Path(options.plot), dpi=110)
