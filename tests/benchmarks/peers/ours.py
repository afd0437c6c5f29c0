"""This project's stream, in process and through Ray Data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from pipeline.mixtures.meta_distributions import Fixed, Sparse
from pipeline.mixtures.plan import MixturePlan
from pipeline.stream.batches import MixtureStream
from tests.benchmarks.peers.harness import B, Cell, Contestant, L, S, run
from tests.benchmarks.peers.ray_session import start_ray
from tests.toy_store import write_store

FOLDER = "ours"


def prepare(cell: Cell, folder: Path) -> None:
    write_store(folder, list(cell.streams_KT))


def stream(cell: Cell) -> MixtureStream:
    windows_K = np.full(cell.domains, cell.windows)
    law = (
        Sparse(support_size=S) if cell.mode == "changing" else Fixed(np.full(cell.domains, 1 / cell.domains))
    )
    plan = MixturePlan(windows_K, law, seed=cell.seed, batch_size=B)
    return MixtureStream(store_folder=str(cell.data / FOLDER), sequence_length=L, plan=plan)


def in_process(cell: Cell) -> Iterator[torch.Tensor]:
    for batch in stream(cell).in_process(0, cell.steps + 1):
        yield torch.as_tensor(batch.tokens_BL1)


def through_ray(cell: Cell) -> Iterator[torch.Tensor]:
    for batch in stream(cell).through_ray(0, cell.steps + 1):
        yield torch.as_tensor(batch.tokens_BL1)


if __name__ == "__main__":
    shared = {"package": "soup-of-experts", "prepare": prepare, "folder": FOLDER, "how": "as it is"}
    run(
        {
            "in_process": Contestant(fixed=in_process, changing=in_process, **shared),
            "through_ray": Contestant(fixed=through_ray, changing=through_ray, start=start_ray, **shared),
        }
    )
