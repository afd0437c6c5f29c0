"""How Ray Train hands the stream to its workers. Ray's own process for it imports this file, so it needs no torch."""

from __future__ import annotations

from typing import Any

from ray.train import DataConfig

from pipeline.stream.batches import MixtureStream


class MixtureDataConfig(DataConfig):
    """Gives each rank its own ordered stream instead of splitting one.

    The stream is an object, not a started dataset. It begins at the step that the worker restored, so the global
    batches stay the same after a restart and with another number of workers.
    """

    def configure(self, datasets: dict[str, MixtureStream], world_size: int, **_: Any) -> list[dict]:
        stream = datasets["train"]
        return [{"train": stream.for_rank(rank, world_size)} for rank in range(world_size)]
