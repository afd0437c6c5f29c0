"""LitData: a CombinedStreamingDataset of one StreamingDataset (token chunks) a domain."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from litdata import CombinedStreamingDataset, StreamingDataLoader, StreamingDataset, TokensLoader
from litdata.streaming.writer import BinaryWriter

from tests.benchmarks.peers.harness import B, Cell, Contestant, L, mixture, run

FOLDER = "litdata"
WORKERS = 2


def prepare(cell: Cell, folder: Path) -> None:
    """What ``optimize`` with a TokensLoader writes, without its processes: it would start them for each domain."""
    for domain, windows_nL1 in enumerate(cell.windows_KnL1):
        writer = BinaryWriter(
            str(folder / f"{domain:04d}"), chunk_bytes="64MB", item_loader=TokensLoader(block_size=L + 1)
        )
        for row, window_L1 in enumerate(windows_nL1):
            writer[row] = torch.from_numpy(window_L1.copy())
        writer.done()
        writer.merge()


def _domain(cell: Cell, domain: int) -> StreamingDataset:
    return StreamingDataset(
        str(cell.data / FOLDER / f"{domain:04d}"),
        item_loader=TokensLoader(block_size=L + 1),
        shuffle=True,
        drop_last=True,
    )


def _batches(
    domains: list[StreamingDataset], weights: list[float], seed: int, workers: int
) -> Iterator[torch.Tensor]:
    combined = CombinedStreamingDataset(domains, seed=seed, weights=weights, iterate_over_all=False)
    for batch in StreamingDataLoader(combined, batch_size=B, num_workers=workers):
        if len(batch) == B:  # each worker's last one may be shorter, also with the loader's drop_last
            yield batch


def fixed(cell: Cell) -> Iterator[torch.Tensor]:
    """Ends when the first domain was read once."""
    domains = [_domain(cell, domain) for domain in range(cell.domains)]
    return _batches(domains, [1 / cell.domains] * cell.domains, cell.seed, WORKERS)


def changing(cell: Cell) -> Iterator[torch.Tensor]:
    """A new combination each step, read in this process: workers would have to be started each time."""
    for step in range(cell.steps + 1):
        support_s, weights_s = mixture(cell.seed, step, cell.domains)
        yield next(_batches([_domain(cell, d) for d in support_s], weights_s.tolist(), step, 0))


if __name__ == "__main__":
    run(
        {
            "": Contestant(
                package="litdata",
                fixed=fixed,
                changing=changing,
                prepare=prepare,
                folder=FOLDER,
                how="a new CombinedStreamingDataset of four each step",
            )
        }
    )
