"""A plain PyTorch map-style dataset of memory-mapped tokens, a sampler and a DataLoader.

The loader does not batch by itself: the sampler names the B windows of a step and the dataset gathers them at
once, which PyTorch's documentation recommends where many samples are read more cheaply together.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler, WeightedRandomSampler

from tests.benchmarks.peers.harness import B, Cell, Contestant, run, slots

WORKERS = 0
"""Worker processes; sending a batch from one costs more than gathering it."""


class Windows(Dataset):
    """All windows of all domains, one domain after the other."""

    def __init__(self, cell: Cell):
        self.windows_KnL1 = cell.windows_KnL1

    def __len__(self) -> int:
        return self.windows_KnL1.shape[0] * self.windows_KnL1.shape[1]

    def __getitem__(self, indices: list[int]) -> torch.Tensor:
        """uint16 [len(indices), L + 1]."""
        return torch.from_numpy(self.windows_KnL1[np.divmod(indices, self.windows_KnL1.shape[1])])


class MixtureSampler(Sampler):
    """The windows of each step, of another mixture every time: what the user has to write."""

    def __init__(self, cell: Cell):
        self.cell = cell

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.cell.steps + 1):
            domain_B, row_B = slots(self.cell, step)
            yield (domain_B * self.cell.windows + row_B).tolist()


def fixed(cell: Cell) -> Iterator[torch.Tensor]:
    """WeightedRandomSampler wants a weight for each window, and draws them all at the start."""
    dataset = Windows(cell)
    weights = torch.full((len(dataset),), 1 / len(dataset), dtype=torch.double)
    sampler = WeightedRandomSampler(weights, num_samples=B * (cell.steps + 1), replacement=True)
    return iter(
        DataLoader(
            dataset, sampler=BatchSampler(sampler, B, drop_last=True), batch_size=None, num_workers=WORKERS
        )
    )


def changing(cell: Cell) -> Iterator[torch.Tensor]:
    return iter(DataLoader(Windows(cell), sampler=MixtureSampler(cell), batch_size=None, num_workers=WORKERS))


if __name__ == "__main__":
    run({"": Contestant(package="torch", fixed=fixed, changing=changing, how="own batch sampler")})
