"""Google Grain: ``MapDataset.mix``, and ``MapDataset.select_from_datasets`` with a selection of our own.

A domain's source is its memory-mapped windows: Grain reads any sequence, and an ArrayRecord of the same windows
would have to be decoded. For data that is in memory already its documentation asks for no reading threads.
"""

from __future__ import annotations

from collections.abc import Iterator

import grain
import torch

from tests.benchmarks.peers.harness import B, Cell, Contestant, mixture, run, slots

READ = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)


class Selection(grain.transforms.DatasetSelectionMap):
    """Index → (domain, window): the plan that the user has to write. Stateless: a step's draws are cached."""

    def __init__(self, cell: Cell):
        self.cell = cell

    def __len__(self) -> int:
        return B * (self.cell.steps + 1)

    def __getitem__(self, index: int) -> tuple[int, int]:
        domain_B, row_B = slots(self.cell, index // B)
        return int(domain_B[index % B]), int(row_B[index % B])


def _batches(dataset: grain.MapDataset) -> Iterator[torch.Tensor]:
    for batch in dataset.batch(B, drop_remainder=True).to_iter_dataset(READ):
        yield torch.from_numpy(batch)


def _sources(cell: Cell) -> list[grain.MapDataset]:
    return [grain.MapDataset.source(windows_nL1) for windows_nL1 in cell.windows_KnL1]


def mix_fixed(cell: Cell) -> Iterator[torch.Tensor]:
    domains = [source.shuffle(seed=cell.seed).repeat() for source in _sources(cell)]
    return _batches(grain.MapDataset.mix(domains, weights=[1 / cell.domains] * cell.domains))


def mix_changing(cell: Cell) -> Iterator[torch.Tensor]:
    """The domains stay open; each step mixes its four and takes one batch."""
    sources = _sources(cell)
    for step in range(cell.steps + 1):
        support_s, weights_s = mixture(cell.seed, step, cell.domains)
        domains = [sources[domain].shuffle(seed=step).repeat() for domain in support_s]
        yield next(_batches(grain.MapDataset.mix(domains, weights=weights_s.tolist())))


def select(cell: Cell) -> Iterator[torch.Tensor]:
    return _batches(grain.MapDataset.select_from_datasets(_sources(cell), Selection(cell)))


if __name__ == "__main__":
    run(
        {
            "mix": Contestant(
                package="grain", fixed=mix_fixed, changing=mix_changing, how="a new mix of four each step"
            ),
            "select": Contestant(package="grain", fixed=select, changing=select, how="own selection map"),
        }
    )
