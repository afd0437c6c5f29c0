"""A run's newest checkpoint in its folder; needs torch and safetensors alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from soe_model.training.checkpoint import load_checkpoint, save_checkpoint
from soe_model.training.checkpoint_files import is_whole
from soe_model.training.trainer import SoupTrainer

CURVE = "curve.json"
"""The losses so far, beside the checkpoint."""


def restore(folder: Path, trainer: SoupTrainer, plan_digest: str) -> dict[str, Any]:
    """Put the trainer where the newest whole checkpoint was; returns its notes, or those of a run that begins."""
    for place in sorted(folder.glob("step-*"), reverse=True):
        if is_whole(place):
            return load_checkpoint(place, trainer, plan_digest=plan_digest)
    return {"seconds": 0.0, "curve": []}


def keep(folder: Path, trainer: SoupTrainer, plan_digest: str, notes: dict[str, Any]) -> None:
    """Write a checkpoint, and remove the earlier ones."""
    place = folder / f"step-{trainer.step:07}"
    save_checkpoint(place, trainer, plan_digest=plan_digest, notes=notes)
    for other in folder.glob("step-*"):
        if other != place:
            shutil.rmtree(other)
