"""What every contestant shares: the tokens, the draws, the clock, and a check of what was delivered.

A contestant runs in a process of its own, ours in our environment and a peer in the peers', so nothing here
imports anything but numpy and torch. It prints one line of JSON::

    python -m tests.benchmarks.peers.torch_loader --data FOLDER --mode fixed --domains 64

Legend: K domains, n windows in a domain, B sequences per step, L tokens in a sequence, s domains in a mixture.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

B, L, S = 128, 1024, 4
VOCAB = 32_000
MODES = ("fixed", "changing")
CHECKED = 8
"""Batches kept for the check: the first ones and the last."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One measurement."""

    data: Path
    """Folder of one K: ``tokens.npy``, and a folder for each contestant's own format."""
    mode: str
    domains: int
    steps: int
    seconds: float
    seed: int

    @property
    def streams_KT(self) -> np.ndarray:
        """uint16 [K, n * L + 1], memory-mapped: window r of a domain is ``[r * L : r * L + L + 1]``."""
        return np.asarray(np.load(self.data / "tokens.npy", mmap_mode="r"))

    @property
    def windows_KnL1(self) -> np.ndarray:
        """uint16 [K, n, L + 1]: all windows, a view of the memory-mapped tokens."""
        return np.lib.stride_tricks.sliding_window_view(self.streams_KT, L + 1, axis=1)[:, ::L]

    @property
    def windows(self) -> int:
        """n."""
        return (self.streams_KT.shape[1] - 1) // L


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One way to mix, in one library."""

    package: str
    """The distribution whose version is reported."""
    fixed: Callable[[Cell], Iterator[torch.Tensor]]
    """Batches [B, L + 1] of any integer type, all domains at equal weights."""
    changing: Callable[[Cell], Iterator[torch.Tensor]] | None
    """Batches of another s domains and other weights each step; None: there is no way to."""
    prepare: Callable[[Cell, Path], None] | None = None
    """Write the windows in the library's own format into a new folder; None: it reads ``tokens.npy``."""
    folder: str = ""
    start: Callable[[], None] = lambda: None
    """What a user has running already (a Ray session): not timed."""
    how: str = ""
    """How the weights change, and what of the request was not kept."""


def make_tokens(path: Path, domains: int, windows: int, seed: int = 0) -> None:
    """Random tokens, but for four in each window that say which it is, so that batches can be checked."""
    rng = np.random.Generator(np.random.PCG64(seed))
    streams_KT = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint16, shape=(domains, windows * L + 1))
    row_n = np.arange(windows)
    for domain, stream in enumerate(streams_KT):
        stream[:] = rng.integers(0, VOCAB, len(stream), dtype=np.uint16)
        windows_nL = stream[:-1].reshape(windows, L)
        for place, value in enumerate((domain % VOCAB, domain // VOCAB, row_n % VOCAB, row_n // VOCAB), 1):
            windows_nL[:, place] = value
    streams_KT.flush()


@lru_cache(maxsize=1024)
def mixture(seed: int, step: int, domains: int) -> tuple[np.ndarray, np.ndarray]:
    """s distinct domains and their weights, of one step: int64 [s], float64 [s]. The same for every peer."""
    rng = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, step, 0]))
    weights_s = rng.random(S)
    return rng.choice(domains, S, replace=False), weights_s / weights_s.sum()


@lru_cache(maxsize=1024)
def slots(cell: Cell, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Domain and window of each slot of one step, int64 [B] each, for peers that let the user choose both."""
    rng = np.random.Generator(np.random.Philox(key=cell.seed, counter=[0, 0, step, 1]))
    if cell.mode == "fixed":
        domain_B = rng.integers(0, cell.domains, B)
    else:
        support_s, weights_s = mixture(cell.seed, step, cell.domains)
        domain_B = support_s[np.searchsorted(np.cumsum(weights_s)[:-1], rng.random(B), side="right")]
    return domain_B, rng.integers(0, _windows(cell.data), B)


@lru_cache(maxsize=4)
def _windows(data: Path) -> int:
    return (np.load(data / "tokens.npy", mmap_mode="r").shape[1] - 1) // L


def measure(make: Callable[[Cell], Iterator[torch.Tensor]], cell: Cell) -> dict:
    """Time to the first batch, then steps per second, for a consumer that does nothing with them.

    Not even a cast: torch takes milliseconds to widen a batch of uint16, more than the fast ones need to make it.
    """
    begun = time.perf_counter()
    batches = make(cell)
    kept = [next(batches)]
    first = now = time.perf_counter()
    stamps = [first]
    for batch in itertools.islice(batches, cell.steps):
        now = time.perf_counter()
        stamps.append(now)
        if len(kept) == CHECKED:
            kept.pop(CHECKED // 2)
        kept.append(batch)
        if now - first >= cell.seconds:
            break
    if len(stamps) < 2:
        raise RuntimeError("there was one batch only.")
    steps = len(stamps) - 1
    half = stamps[steps // 2 :]
    return {
        "first_batch_seconds": first - begun,
        "steps": steps,
        "steps_per_second": steps / (now - first),
        # Whatever is ready or starting when the first batch comes counts less in the second half of the steps.
        "second_half_steps_per_second": (len(half) - 1) / (half[-1] - half[0]) if len(half) > 1 else None,
        "longest_step_seconds": float(np.diff(stamps).max()),
        "dtype": str(batch.dtype),
        "ended": steps < cell.steps and now - first < cell.seconds,
    } | _checked(kept, cell)


def _checked(batches: list[torch.Tensor], cell: Cell) -> dict:
    """Refuse batches that are not B windows of the data, and count the domains in one."""
    domains = []
    for batch in batches:
        tokens_BL1 = batch.numpy().astype(np.int64)
        if tokens_BL1.shape != (B, L + 1):
            raise RuntimeError(f"a batch is {list(tokens_BL1.shape)}, not {[B, L + 1]}.")
        domain_B = tokens_BL1[:, 1] + VOCAB * tokens_BL1[:, 2]
        row_B = tokens_BL1[:, 3] + VOCAB * tokens_BL1[:, 4]
        if domain_B.max() >= cell.domains or row_B.max() >= cell.windows:
            raise RuntimeError("a sequence is no window of the data.")
        if not np.array_equal(tokens_BL1, cell.windows_KnL1[domain_B, row_B]):
            raise RuntimeError("a sequence differs from its window.")
        domains.append(len(np.unique(domain_B)))
    if cell.mode == "changing" and max(domains) > S:
        raise RuntimeError(f"a batch has {max(domains)} domains, not {S} at most.")
    return {"domains_in_a_batch": float(np.mean(domains))}


def run(contestants: dict[str, Contestant]) -> None:
    """The command of a contestant's module."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--variant", choices=contestants, default=next(iter(contestants)))
    parser.add_argument("--mode", choices=MODES, default=MODES[0])
    parser.add_argument("--domains", type=int, required=True)
    parser.add_argument("--steps", type=int, default=10_000, help="at most")
    parser.add_argument("--seconds", type=float, default=5, help="at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prepare", action="store_true", help="only write the data in the library's format")
    options = vars(parser.parse_args())
    contestant, prepare = contestants[options.pop("variant")], options.pop("prepare")
    cell = Cell(**options)
    logging.disable(logging.WARNING)
    result = {"version": version(contestant.package), "how": contestant.how}
    try:
        result |= _prepare(contestant, cell) if prepare else _measure(contestant, cell)
    except BaseException as error:  # a failure is a result
        traceback.print_exc()
        result["error"] = f"{type(error).__name__}: {error}"
    print("\n" + json.dumps(result | {"cell": asdict(replace(cell, data=cell.data.name))}), flush=True)


def _prepare(contestant: Contestant, cell: Cell) -> dict:
    if contestant.prepare is None or (folder := cell.data / contestant.folder).exists():
        return {}
    unfinished = folder.with_suffix(".unfinished")
    begun = time.perf_counter()
    contestant.prepare(cell, unfinished)
    unfinished.rename(folder)
    return {"prepare_seconds": time.perf_counter() - begun}


def _measure(contestant: Contestant, cell: Cell) -> dict:
    make = getattr(contestant, cell.mode)
    if make is None:
        return {"cannot": contestant.how}
    contestant.start()
    return measure(make, cell)
