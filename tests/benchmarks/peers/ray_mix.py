"""Ray Data's ``Dataset.mix`` over one Parquet file a domain.

A block of the mix is of one source, so as its documentation asks the blocks are made of one batch's size and a
shuffle after the mix, over 64 batches, spreads them ("random mixing"). Where the weights are those of one step
only, that shuffle would blur them over many steps: there the blocks are of a few rows instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch

from tests.benchmarks.peers.harness import B, Cell, Contestant, mixture, run
from tests.benchmarks.peers.ray_session import start_ray

FOLDER = "ray"
SHUFFLED = 64 * B
FEW = 8
"""Rows of a block where a batch has to have its own weights: 16 blocks a batch."""


def prepare(cell: Cell, folder: Path) -> None:
    """Tokens as a tensor column, which Ray reads without a copy; no dictionary and no compression: noise."""
    folder.mkdir()
    for domain, windows_nL1 in enumerate(cell.windows_KnL1):
        column = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(windows_nL1))
        pq.write_table(
            pa.table({"tokens": column}), _file(folder, domain), compression="none", use_dictionary=False
        )


def _file(folder: Path, domain: int) -> str:
    return str(folder / f"{domain:04d}.parquet")


def _mix(domains: list[ray.data.Dataset], weights: list[float]) -> ray.data.Dataset:
    return domains[0].mix(*domains[1:], weights=weights)


def _batches(dataset: ray.data.Dataset) -> Iterator[torch.Tensor]:
    # Batches are collated from Arrow; uint16 numpy would be widened by the default conversion.
    for batch in dataset.iter_batches(batch_size=B, batch_format="numpy", prefetch_batches=2, drop_last=True):
        yield torch.as_tensor(batch["tokens"])


def _shuffled(batch: pa.Table) -> pa.Table:
    return batch.take(np.random.permutation(len(batch)))


def fixed(cell: Cell) -> Iterator[torch.Tensor]:
    """One pass over the data, which is all that a Ray dataset is."""
    domains = []
    for domain in range(cell.domains):
        dataset = ray.data.read_parquet(_file(cell.data / FOLDER, domain), override_num_blocks=1)
        if cell.windows > B:
            dataset = dataset.repartition(target_num_rows_per_block=B)
        domains.append(dataset)
    mixed = _mix(domains, [1 / cell.domains] * cell.domains)
    return _batches(mixed.map_batches(_shuffled, batch_size=SHUFFLED, batch_format="pyarrow"))


def changing(cell: Cell) -> Iterator[torch.Tensor]:
    """A new dataset each step, of the first B rows of each of its four domains."""
    for step in range(cell.steps + 1):
        support_s, weights_s = mixture(cell.seed, step, cell.domains)
        domains = []
        for domain in support_s:
            dataset = ray.data.read_parquet(_file(cell.data / FOLDER, domain), override_num_blocks=1)
            domains.append(dataset.limit(B).repartition(target_num_rows_per_block=FEW))
        yield next(_batches(_mix(domains, weights_s.tolist())))


if __name__ == "__main__":
    run(
        {
            "": Contestant(
                package="ray",
                fixed=fixed,
                changing=changing,
                prepare=prepare,
                folder=FOLDER,
                start=start_ray,
                how="a new dataset of four each step, each domain from its first row on",
            )
        }
    )
