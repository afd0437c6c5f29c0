"""Checkpoints: a training state on disk, written by any number of ranks and read by any other number.

The files are those of ``checkpoint_files.py``.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from soe_model.model.sharding import Sharding
from soe_model.training.checkpoint_files import STATE, DamagedCheckpoint, rank_file, read_state, verify_file
from soe_model.training.trainer import SoupTrainer
from storage_schema.aside import written_aside
from storage_schema.manifest import (
    StoreError,
    UnavailableError,
    content_digest,
    file_digest,
    write_atomically,
)
from storage_schema.versions import written_with

_TRAINING = (
    "optimizer", "learning_rate", "expert_learning_rate", "router_learning_rate", "steps", "warmup_steps",
    "final_learning_rate_fraction", "gradient_clip", "train_generic",
)  # fmt: skip
"""Settings that the next steps depend on, besides Adam's constants; the plan's digest stands for the data."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A copy in host memory of one rank's share of a trainer's state, so that training can go on."""

    sharding: Sharding
    tensors: dict[str, torch.Tensor]
    state: dict[str, Any]
    """The content of checkpoint.json."""

    @classmethod
    def of(cls, trainer: SoupTrainer, *, plan_digest: str, notes: dict[str, Any]) -> Snapshot:
        """Copy the trainer's state. `notes` is any JSON that a resume wants back."""
        sharding = trainer.sharding
        state = (
            written_with()
            | {
                "step": trainer.step,
                "world_size": sharding.world_size,
                "num_params": sharding.num_params,
                "plan_digest": plan_digest,
                "notes": notes,
            }
            | _to_match(trainer)
        )
        tensors = {
            name: tensor.to("cpu", copy=True)
            for name, tensor in trainer.tensors().items()
            if sharding.rank == 0 or not trainer.is_whole(name)
        }
        return cls(sharding=sharding, tensors=tensors, state=state)

    def write(self, folder: str | Path) -> None:
        """Write this rank's files into `folder` (rank 0 writes the JSON too)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / rank_file(self.sharding.rank, self.sharding.world_size)
        for left in folder.glob(f".{path.name}.*"):  # by a worker that was killed: this name is ours alone
            left.unlink()
        with written_aside(path) as aside:
            save_file(self.tensors, aside)
        entry = {"bytes": path.stat().st_size, "sha256": file_digest(path)}
        write_atomically(path.with_suffix(".json"), json.dumps(entry, indent=1))
        if self.sharding.rank == 0:
            state = self.state | {"digest": content_digest(self.state)}
            write_atomically(folder / STATE, json.dumps(state, indent=1, sort_keys=True))


def save_checkpoint(
    folder: str | Path, trainer: SoupTrainer, *, plan_digest: str, notes: dict[str, Any]
) -> None:
    """Write this rank's share of the trainer's state into `folder` (rank 0 writes the JSON too).

    Args:
        plan_digest: digest of the data plan; a resume with another plan is refused.
        notes: any JSON that a resume wants back, such as the seconds trained.
    """
    Snapshot.of(trainer, plan_digest=plan_digest, notes=notes).write(folder)


def load_checkpoint(folder: str | Path, trainer: SoupTrainer, *, plan_digest: str) -> dict[str, Any]:
    """Restore `trainer` from a checkpoint of any number of ranks; return its notes.

    Each rank checks and reads the files that hold its columns, and that of rank 0.

    Raises:
        DamagedCheckpoint: a file is missing, truncated or altered; the trainer's tensors are untouched.
        UnavailableError: the disk does not answer now.
        StoreError: the checkpoint is of another store, plan, model or optimizer, or this user may not read it.
    """
    folder = Path(folder)
    state = read_state(folder)
    _check(folder, state, trainer, plan_digest)
    sharding, world_size = trainer.sharding, state["world_size"]
    sources = {
        rank: overlap for rank in range(world_size) if (overlap := _overlap(sharding, rank, world_size))
    }
    files = {rank: folder / rank_file(rank, world_size) for rank in {0, *sources}}
    for path in files.values():
        verify_file(path)
    try:
        for rank, path in files.items():
            with safe_open(path, "pt") as file:
                _check_tensors(path, file, trainer, sources.get(rank), whole=rank == 0)
        for rank, path in files.items():
            with safe_open(path, "pt") as file:
                _restore(file, trainer, sources.get(rank), whole=rank == 0)
    except SafetensorError as error:
        raise DamagedCheckpoint(f"{path} cannot be read: {error}.") from error
    except OSError as error:  # it was read just now, to the last byte
        raise UnavailableError(
            f"cannot read {path}: {error}. It was whole just before: try again."
        ) from error
    trainer.step = state["step"]
    return state["notes"]


def _to_match(trainer: SoupTrainer) -> dict[str, Any]:
    """What a checkpoint and a trainer must have in common besides the plan, in the types of JSON."""
    training = {name: getattr(trainer.training, name) for name in _TRAINING}
    return json.loads(
        json.dumps(
            {"soup": asdict(trainer.soup), "training": training | {"adam": asdict(trainer.training.adam)}}
        )
    )


def _check(folder: Path, state: dict[str, Any], trainer: SoupTrainer, plan_digest: str) -> None:
    if state["plan_digest"] != plan_digest:
        raise StoreError(
            f"{folder} was made with other data: its plan {state['plan_digest'][:12]} is not this run's "
            f"{plan_digest[:12]} (the store, seed, batch_size, sequence_length, mixtures_per_step or the law of the "
            "mixtures changed). Use the original settings, or another run name."
        )
    mine = _to_match(trainer)
    state["training"].setdefault("train_generic", False)  # before it could be
    for part, of in (("soup", "another model"), ("training", "the state of another training")):
        changed = [
            f"{key} was {state[part][key]!r}, now {value!r}"
            for key, value in mine[part].items()
            if key in state[part] and state[part][key] != value  # an older release wrote fewer settings
        ]
        if changed:
            raise StoreError(
                f"{folder} holds {of}: {'; '.join(changed)}. Use the original settings, or another run name."
            )


def _overlap(mine: Sharding, rank: int, world_size: int) -> tuple[slice, slice] | None:
    """Columns that a rank of the checkpoint has in common with this one: their numbers here, and there."""
    theirs = Sharding(num_params=mine.num_params, rank=rank, world_size=world_size).columns
    start, stop = max(mine.columns.start, theirs.start), min(mine.columns.stop, theirs.stop)
    if start >= stop:
        return None
    here, there = mine.columns.start, theirs.start
    return slice(start - here, stop - here), slice(start - there, stop - there)


def _check_tensors(
    path: Path, file: safe_open, trainer: SoupTrainer, overlap: tuple[slice, slice] | None, *, whole: bool
) -> None:
    """Raise DamagedCheckpoint unless the file has what :func:`_restore` will copy; nothing is copied before that."""
    for name, tensor in trainer.tensors().items():
        if whole if trainer.is_whole(name) else overlap is not None:
            found = file.get_slice(name)
            shape = tuple(found.get_shape())
            last = tensor.shape[-1:]
            if not trainer.is_whole(name):
                assert overlap is not None
                granularity = trainer.sharding.width // tensor.shape[-1]
                last = shape[-1:] if shape and shape[-1] >= -(-overlap[1].stop // granularity) else (None,)
            if shape != (*tensor.shape[:-1], *last):
                raise DamagedCheckpoint(
                    f"{path} was altered: {name} has shape {shape}, not {tuple(tensor.shape)}."
                )


def _restore(
    file: safe_open, trainer: SoupTrainer, overlap: tuple[slice, slice] | None, *, whole: bool
) -> None:
    """Copy from one rank's file what this rank needs: its columns, and the tensors that every rank holds whole."""
    for name, tensor in trainer.tensors().items():
        if trainer.is_whole(name):
            if whole:
                tensor.copy_(file.get_tensor(name))
        elif overlap is not None:
            # Every rank begins at a multiple of 1024 columns, so no block is cut, whatever the world sizes.
            granularity = trainer.sharding.width // tensor.shape[-1]
            mine, theirs = (
                slice(part.start // granularity, -(-part.stop // granularity)) for part in overlap
            )
            leading = (slice(None),) * (tensor.dim() - 1)
            tensor[..., mine].copy_(file.get_slice(name)[(*leading, theirs)])
