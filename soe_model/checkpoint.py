"""Resumable training state: one safetensors file a rank and one JSON of the run.

checkpoint.json                       step, world size, digests the run must match
rank-00000-of-00002.safetensors       this rank's columns of shared, experts and their moments; rank 0
                                      also the router
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from soe_model.sharding import Sharding
from soe_model.training import SoupTrainer
from storage_schema.manifest import SCHEMA_VERSION, StoreError, write_atomically

_STATE = "checkpoint.json"


def save_checkpoint(
    folder: str | Path, trainer: SoupTrainer, *, plan_digest: str, notes: dict[str, Any]
) -> None:
    """Write this rank's share of the trainer's state into `folder` (rank 0 writes the JSON too).

    Args:
        plan_digest: of the data plan; a resume with another one is refused.
        notes: anything JSON that a resume wants back, such as the seconds trained.
    """
    folder, sharding = Path(folder), trainer.sharding
    folder.mkdir(parents=True, exist_ok=True)
    tensors = trainer.tensors()
    if sharding.rank > 0:
        tensors = {name: t for name, t in tensors.items() if not name.startswith("router")}
    save_file(tensors, folder / _rank_file(sharding.rank, sharding.world_size))
    if sharding.rank == 0:
        state = {
            "schema_version": SCHEMA_VERSION,
            "step": trainer.step,
            "world_size": sharding.world_size,
            "num_params": sharding.num_params,
            "plan_digest": plan_digest,
            "soup": asdict(trainer.soup),
            "notes": notes,
        }
        write_atomically(folder / _STATE, json.dumps(state, indent=1, sort_keys=True))


def load_checkpoint(folder: str | Path, trainer: SoupTrainer, *, plan_digest: str) -> dict[str, Any]:
    """Restore `trainer` from a checkpoint written on any number of ranks; returns its notes.

    Raises:
        StoreError: if the checkpoint is unreadable, or of another store, plan or model.
    """
    folder = Path(folder)
    try:
        state = json.loads((folder / _STATE).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{folder} is not a checkpoint: {error}") from error
    _check(folder, state, trainer, plan_digest)
    try:
        for name, tensor in trainer.tensors().items():
            _restore(folder, state["world_size"], trainer.sharding, name, tensor)
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{folder} is damaged: {error}. Remove it to resume from the one before.") from error
    trainer.step = state["step"]
    return state["notes"]


def _check(folder: Path, state: dict, trainer: SoupTrainer, plan_digest: str) -> None:
    if state["schema_version"] != SCHEMA_VERSION:
        raise StoreError(
            f"{folder} has schema version {state['schema_version']}; this release reads {SCHEMA_VERSION}."
        )
    if state["plan_digest"] != plan_digest:
        raise StoreError(
            f"{folder} was made with other data: its plan {state['plan_digest'][:12]} is not this run's "
            f"{plan_digest[:12]} (store, seed, batch_size, sequence_length, mixtures_per_step or support_size "
            "changed). Use the original settings, or another run name."
        )
    soup = json.loads(json.dumps(asdict(trainer.soup)))
    changed = [key for key in soup if soup[key] != state["soup"].get(key)]
    if changed:
        raise StoreError(f"{folder} holds another model: {', '.join(changed)} differ. Use another run name.")


def _restore(folder: Path, saved_world: int, sharding: Sharding, name: str, tensor: torch.Tensor) -> None:
    """Copy this rank's columns of one tensor out of the files of `saved_world` ranks."""
    if name.startswith("router"):
        with safe_open(folder / _rank_file(0, saved_world), "pt") as file:
            tensor.copy_(file.get_tensor(name))
        return
    mine = sharding.columns
    for rank in range(saved_world):
        theirs = Sharding(num_params=sharding.num_params, rank=rank, world_size=saved_world).columns
        start, stop = max(mine.start, theirs.start), min(mine.stop, theirs.stop)
        if start >= stop:
            continue
        with safe_open(folder / _rank_file(rank, saved_world), "pt") as file:
            part = file.get_slice(name)
            columns = slice(start - theirs.start, stop - theirs.start)
            values = part[columns] if tensor.dim() == 1 else part[:, columns]
        tensor[..., start - mine.start : stop - mine.start].copy_(values)


def _rank_file(rank: int, world_size: int) -> str:
    return f"rank-{rank:05d}-of-{world_size:05d}.safetensors"
