"""A run's checkpoints: written behind the training, and read back, newest whole one first.

For a checkpoint, the training waits only until its state is copied to host memory. Ray Train's upload thread writes
the copy, and Ray registers the checkpoint once every rank's files are written. Only registered checkpoints are read, so
a half-written one never counts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.train
import torch
import torch.distributed as dist
from ray.train import Checkpoint, CheckpointConsistencyMode, CheckpointUploadMode

from soe_model.training.checkpoint import Snapshot, load_checkpoint
from soe_model.training.checkpoint_files import DamagedCheckpoint
from soe_model.training.trainer import SoupTrainer
from storage_schema.manifest import StoreError

REGISTRY_SECONDS = 60.0
"""How long Ray's controller may take to say which checkpoints there are."""


class Checkpoints:
    """The checkpoints of the run in `folder`, as one rank of a Ray Train group sees them.

    Call every method on all ranks at the same step.
    """

    def __init__(self, folder: Path, trainer: SoupTrainer, *, plan_digest: str):
        self.folder, self.trainer, self.plan_digest = folder, trainer, plan_digest
        self._registered: list[str] = []
        self._written = threading.Event()
        self._written.set()
        self._failure: Exception | None = None
        self.whole_at: float | None = None
        """When this rank's part of the newest checkpoint was written, seconds since 1970."""

    def restore(self) -> dict[str, Any] | None:
        """Restore the newest checkpoint that is whole; its notes, or None where there is no checkpoint.

        Raises:
            StoreError: there are checkpoints and none is whole, or they are of another run.
        """
        reported = ray.train.get_all_reported_checkpoints(
            consistency_mode=CheckpointConsistencyMode.COMMITTED, timeout_s=REGISTRY_SECONDS
        )
        self._registered = [Path(entry.checkpoint.path).name for entry in reported]
        damaged = []
        for name in reversed(self._registered):
            notes, damage = None, None
            try:
                notes = load_checkpoint(self.folder / name, self.trainer, plan_digest=self.plan_digest)
            except DamagedCheckpoint as error:
                damage = " ".join(str(error).split())
            found = next((text for text in _of_every_rank(damage) if text), None)
            if found is None:
                self.whole_at = (self.folder / name).stat().st_mtime
                return notes
            damaged.append(found)
            if self.trainer.sharding.rank == 0:
                print(f"checkpoint {name} is damaged: {found} Trying the one before it.", flush=True)
        if damaged:
            raise StoreError(
                f"no checkpoint of {self.folder} is whole: {' '.join(damaged)} Put the files back from a copy, or "
                "remove the folder to begin anew."
            )
        return None

    def begin(self, metrics: dict[str, Any], notes: dict[str, Any]) -> None:
        """Copy the state, wait until the last checkpoint is written, and begin to write this one."""
        self.wait()
        snapshot = Snapshot.of(self.trainer, plan_digest=self.plan_digest, notes=notes)
        self._written.clear()
        name = self._free_name()
        ray.train.report(
            metrics,
            checkpoint=Checkpoint(str(self.folder / name)),
            checkpoint_dir_name=name,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=self._writer(snapshot),
            delete_local_checkpoint_after_upload=False,  # it is written where it stays
        )

    def wait(self) -> None:
        """Wait until this rank has written what it began. Raises what the writing raised."""
        self._written.wait()
        if self._failure:
            raise self._failure

    def _free_name(self) -> str:
        """A folder that Ray does not know yet.

        After a damaged checkpoint its step comes again. If a name were registered twice, Ray would delete the folder
        of both when it drops the older one.
        """
        name = first = f"step-{self.trainer.step:09d}"
        number = 2
        while name in self._registered:
            name, number = f"{first}-{number}", number + 1
        return name

    def _writer(self, snapshot: Snapshot) -> Callable[[Checkpoint, str], Checkpoint]:
        def write(_: Checkpoint, name: str) -> Checkpoint:
            try:
                snapshot.write(self.folder / name)
                self.whole_at = time.time()
            except Exception as error:
                self._failure = error
                raise
            finally:
                self._written.set()
            return Checkpoint(str(self.folder / name))

        return write


def _of_every_rank(value: str | None) -> list[str | None]:
    """The value that each rank gave, on every rank."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    values: list[str | None] = [None] * dist.get_world_size()
    if torch.distributed.get_backend() == "nccl":
        torch.cuda.set_device(ray.train.torch.get_device())
    dist.all_gather_object(values, value)
    return values
