"""MosaicML Streaming: a StreamingDataset of one local Stream (MDS shards) a domain, with their proportions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.data import DataLoader

# The library imports torchvision for its image datasets, and torchvision does not import beside a CPU build of torch
# if it was built for another. None of its operators is used here: the two that it looks for are only declared.
for operator in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, operator):
        torch.library.define(
            f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        )
from streaming import MDSWriter, Stream, StreamingDataset  # noqa: E402

from tests.benchmarks.peers.harness import B, Cell, Contestant, L, mixture, run  # noqa: E402

FOLDER = "mosaic"
WORKERS = 2


def prepare(cell: Cell, folder: Path) -> None:
    for domain, windows_nL1 in enumerate(cell.windows_KnL1):
        columns = {"tokens": f"ndarray:uint16:{L + 1}"}
        with MDSWriter(out=str(folder / f"{domain:04d}"), columns=columns) as writer:
            for window_L1 in windows_nL1:
                writer.write({"tokens": window_L1})


def _dataset(cell: Cell, domains: list[int], weights: list[float], batches: int, seed: int):
    """An epoch of `batches`; the batching method `random` (the default) mixes all streams in each batch."""
    streams = [
        Stream(local=str(cell.data / FOLDER / f"{domain:04d}"), proportion=weight)
        for domain, weight in zip(domains, weights, strict=True)
    ]
    return StreamingDataset(
        streams=streams, epoch_size=batches * B, batch_size=B, shuffle=True, shuffle_seed=seed
    )


def _loader(dataset: StreamingDataset, workers: int) -> Iterator[torch.Tensor]:
    for batch in DataLoader(dataset, batch_size=B, num_workers=workers, drop_last=True):
        yield batch["tokens"]


def fixed(cell: Cell) -> Iterator[torch.Tensor]:
    weights = [1 / cell.domains] * cell.domains
    return _loader(_dataset(cell, range(cell.domains), weights, cell.steps + 1, cell.seed), WORKERS)


def changing(cell: Cell) -> Iterator[torch.Tensor]:
    """A new dataset of one batch each step, read in this process: workers would have to be started each time."""
    for step in range(cell.steps + 1):
        support_s, weights_s = mixture(cell.seed, step, cell.domains)
        dataset = _dataset(cell, support_s, weights_s.tolist(), 1, step)
        yield next(_loader(dataset, 0))
        del dataset  # releases its shared memory, which the next one asks for under the same names


if __name__ == "__main__":
    run(
        {
            "": Contestant(
                package="mosaicml-streaming",
                fixed=fixed,
                changing=changing,
                prepare=prepare,
                folder=FOLDER,
                how="a new StreamingDataset of four streams each step",
            )
        }
    )
