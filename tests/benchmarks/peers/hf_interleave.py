"""Hugging Face ``datasets.interleave_datasets`` over one saved, memory-mapped dataset a domain."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, interleave_datasets, load_from_disk

from tests.benchmarks.peers.harness import B, Cell, Contestant, L, mixture, run

FOLDER = "hf"


def prepare(cell: Cell, folder: Path) -> None:
    """Lists of a fixed length: a row of uncompressed Arrow is a slice of the mapped file."""
    datasets.disable_progress_bars()
    for domain, windows_nL1 in enumerate(cell.windows_KnL1):
        tokens = pa.FixedSizeListArray.from_arrays(pa.array(windows_nL1.reshape(-1)), L + 1)
        Dataset(pa.table({"tokens": tokens})).save_to_disk(folder / f"{domain:04d}")


def _domains(cell: Cell) -> list[Dataset]:
    return [load_from_disk(cell.data / FOLDER / f"{domain:04d}") for domain in range(cell.domains)]


def _batches(dataset: Dataset) -> Iterator[torch.Tensor]:
    """int64 [B, L + 1]."""
    for batch in dataset.with_format("torch").iter(batch_size=B, drop_last_batch=True):
        yield batch["tokens"]


def fixed(cell: Cell) -> Iterator[torch.Tensor]:
    """Ends when every domain was read once (`all_exhausted`): the first to end would end it early."""
    weights = [1 / cell.domains] * cell.domains
    domains = _domains(cell)
    mixed = interleave_datasets(domains, weights, seed=cell.seed, stopping_strategy="all_exhausted")
    return _batches(mixed)


def changing(cell: Cell) -> Iterator[torch.Tensor]:
    """The domains stay open; each step interleaves B rows of each of its four, from a random row on."""
    domains = _domains(cell)
    for step in range(cell.steps + 1):
        support_s, weights_s = mixture(cell.seed, step, cell.domains)
        rng = np.random.Generator(np.random.PCG64([cell.seed, step]))
        firsts = rng.integers(0, cell.windows - B + 1, len(support_s))
        slices = [domains[d].select(range(f, f + B)) for d, f in zip(support_s, firsts, strict=True)]
        yield next(_batches(interleave_datasets(slices, weights_s.tolist(), seed=step)))


if __name__ == "__main__":
    run(
        {
            "": Contestant(
                package="datasets",
                fixed=fixed,
                changing=changing,
                prepare=prepare,
                folder=FOLDER,
                how="a new interleave_datasets of four each step",
            )
        }
    )
