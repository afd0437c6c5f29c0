"""A training worker that trains nothing, writes down what came, and dies once; Ray's workers can import it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from pathlib import Path

import ray.train
from ray.train import Checkpoint

CHECKPOINTS = 10, 25, 40
"""Steps after which the group can resume: no window of 7 steps from 0 on ends there."""


def of_slot(batch, slot: int) -> str:
    """What a slot holds, and which mixture it belongs to."""
    content = batch.tokens_BL1[slot].tobytes() + batch.mixture_B[slot].tobytes()
    return hashlib.sha256(content + batch.domain_weights_WK.tobytes()).hexdigest()


def consume(config: dict) -> None:
    """Log what came, and die once in the middle if it is this rank's turn."""
    context, folder = ray.train.get_context(), Path(config["folder"])
    rank, restored = context.get_world_rank(), ray.train.get_checkpoint()
    start = config["start"]
    if restored is not None:
        start = json.loads((Path(restored.path) / "step.json").read_text())
    stream = ray.train.get_dataset_shard("train")
    with open(folder / f"{config['phase']}-{rank}-{os.getpid()}.jsonl", "w") as log:
        for batch in stream.through_ray(start, config["stop"]):
            slots = range(stream.slots.start, stream.slots.stop)
            for number, slot in enumerate(slots):
                log.write(json.dumps([batch.step, slot, of_slot(batch, number)]) + "\n")
            log.flush()
            if batch.step + 1 in CHECKPOINTS:
                there = folder / f"step-{batch.step + 1}"
                if rank == 0:
                    there.mkdir(exist_ok=True)
                    (there / "step.json").write_text(json.dumps(batch.step + 1))
                ray.train.report({}, checkpoint=Checkpoint(there) if rank == 0 else None)
            died = folder / f"died-{config['phase']}"
            if (
                batch.step == config["dies_after"]
                and rank == context.get_world_size() - 1
                and not died.exists()
            ):
                died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
