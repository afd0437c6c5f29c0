"""What the stream would do at a scale that is not here: 10^13 tokens, 4096 domains, 1,024 ranks.

    python -m tests.benchmarks.stream_simulation --json result.json

The plan is the real one (it is pure, so every rank's batches can be computed on one machine): its cost, its size
and which slots every rank reads in one block of steps are measured. What is simulated is the storage: every read
takes a random time (log-normal around the median given, spread 0.5 in logarithm), a rank has a number of reads in
flight and fetches one block after the other, and a step needs all ranks. The model takes no time, so it does not matter
how far ahead a rank may read: the steps per second are the storage's own limit. If the model makes fewer, storage is
not the bottleneck. On an object store, every file that a block was read from is checked afterwards, all in parallel
(``pipeline/remote/files.py``); that is one more request for each of the block's domains.

On paper: a store of T tokens holds T / L windows, so a read finds its window in a cache of C bytes with a chance of
C / (2 T); the others go to the store. Requests per second are steps per second times sequences per step, plus the
checks.
"""

from __future__ import annotations

import argparse
import json
import pickle
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.mixtures.meta_distributions import Sparse
from pipeline.mixtures.plan import MixturePlan
from pipeline.stream.batches import MixtureStream

TOKENS, K, L, S = 10**13, 4096, 1024, 4
SPREAD = 0.5


@dataclass(frozen=True, kw_only=True)
class Storage:
    """A place where partitions lie."""

    name: str
    median_seconds: float
    in_flight: int
    """Reads that a rank has under way at once."""
    asked_again: bool = False


STORAGES = (
    Storage(name="local NVMe, memory-mapped", median_seconds=100e-6, in_flight=1),
    Storage(name="local NVMe, 16 readers", median_seconds=100e-6, in_flight=16),
    Storage(name="parallel file system", median_seconds=1e-3, in_flight=16),
    Storage(name="object store, same zone", median_seconds=20e-3, in_flight=24, asked_again=True),
    Storage(name="object store, far away", median_seconds=100e-3, in_flight=24, asked_again=True),
    Storage(
        name="object store, far away, 128 readers", median_seconds=100e-3, in_flight=128, asked_again=True
    ),
)


def big_plan(batch_size: int) -> MixturePlan:
    """Domains of very unequal sizes, 10^13 tokens in all."""
    shares = np.random.Generator(np.random.Philox(0)).lognormal(0, 1, K)
    windows_K = (shares / shares.sum() * TOKENS / L).astype(np.int64)
    return MixturePlan(windows_K, Sparse(support_size=S), seed=0, batch_size=batch_size, sequence_length=L)


def check_ranks(plan: MixturePlan, ranks: int, steps: int) -> dict[str, float]:
    """Check that all ranks' slots of the first steps, from a copy of the plan, tile the global batch; measure what the
    plan costs a rank, and how many domains its block touches.
    """
    stream = MixtureStream(store_folder="", sequence_length=L, plan=plan)
    whole = plan.steps(0, steps)
    mine = pickle.loads(pickle.dumps(plan))  # as it reaches a rank; made here, a moment ago
    covered_B = np.zeros(plan.batch_size, int)
    touched, seconds = [], []
    for rank in range(ranks):
        slots = stream.for_rank(rank, ranks).slots
        begun = time.perf_counter()
        own = mine.steps(0, steps, slots)
        seconds.append((time.perf_counter() - begun) / steps)
        assert np.array_equal(own.domain_TB, whole.domain_TB[:, slots])
        assert np.array_equal(own.row_TB, whole.row_TB[:, slots])
        covered_B[slots] += 1
        touched.append(len(np.unique(own.domain_TB)))
    assert (covered_B == 1).all(), "the ranks' slots leave gaps or overlap"
    return {
        "ranks_checked": len(touched),
        "plan_bytes": len(pickle.dumps(plan)),
        "plan_seconds_per_step": float(np.median(seconds)),
        "domains_in_a_window": float(np.mean(touched)),
    }


def simulate(
    storage: Storage, *, ranks: int, share: int, block_steps: int, blocks: int, checks: int = 0
) -> float:
    """Steps per second, over `blocks` blocks of `block_steps` steps, with `share` sequences per rank and step, and with
    `checks` requests per rank after the reads of a block.
    """
    random = np.random.Generator(np.random.Philox(1))
    ready = np.zeros(ranks)
    for _ in range(blocks):
        for requests in (block_steps * share, checks):  # the second begins when all of the first are answered
            free = np.repeat(ready[:, None], storage.in_flight, axis=1)
            for _ in range(requests):  # the next goes to the connection that is free first
                soonest = free.argmin(1)
                free[np.arange(ranks), soonest] += storage.median_seconds * random.lognormal(0, SPREAD, ranks)
            ready = free.max(1)
    return blocks * block_steps / ready.max()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=1024)
    parser.add_argument("--sequences-per-rank", type=int, default=8)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--cache-bytes", type=int, default=256 << 20, help="of a rank")
    parser.add_argument("--json", help="write the result there")
    options = parser.parse_args(arguments)
    share, batch = options.sequences_per_rank, options.ranks * options.sequences_per_rank
    plan = big_plan(batch)
    stream = MixtureStream(store_folder="", sequence_length=L, plan=plan).for_rank(0, options.ranks)
    block_steps = stream.block_steps
    found = {"paper": check_ranks(plan, options.ranks, block_steps)}
    found["paper"] |= {
        "tokens": TOKENS,
        "batch_size": batch,
        "window_steps": block_steps,
        "window_bytes": block_steps * share * 2 * (L + 1),
        "cache_hit_share": min(1.0, options.cache_bytes / (2 * TOKENS)),
        "cache_bytes_for_half_the_reads": TOKENS,
    }
    for name, value in found["paper"].items():
        print(f"{name}: {value:,.6g}")
    found["simulated"] = []
    print(f"{'storage':38} steps/s  requests/s of all ranks")
    for storage in STORAGES:
        checks = round(found["paper"]["domains_in_a_window"]) if storage.asked_again else 0
        rate = simulate(
            storage,
            ranks=options.ranks,
            share=share,
            block_steps=block_steps,
            blocks=options.windows,
            checks=checks,
        )
        requests = rate * (batch + options.ranks * checks / block_steps)
        row = {**storage.__dict__, "steps_per_second": rate, "requests_per_second": requests}
        found["simulated"].append(row)
        print(f"{storage.name:38} {rate:7,.1f} {requests:12,.0f}", flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
