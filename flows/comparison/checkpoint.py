"""A run in training on disk: the learner's tensors, and a record that names them, written last.

Only a record whose tensors are whole counts; a damaged one is said, and the run begins anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from soe_model.methods.method import Learner
from storage_schema.aside import written_aside
from storage_schema.json_files import read_object
from storage_schema.manifest import file_digest, write_atomically

RECORD = "checkpoint.json"


def save(folder: Path, learner: Learner, notes: dict[str, Any]) -> None:
    """Write the state of the learner; the one before it stays until this one is whole. `notes` is any JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{learner.step:09d}.safetensors"
    with written_aside(path) as aside:
        save_file(learner.state_dict(), aside)
        digest = file_digest(aside)
    record = {"step": learner.step, "file": path.name, "sha256": digest, "notes": notes}
    write_atomically(folder / RECORD, json.dumps(record, indent=1))
    for older in folder.glob("step-*.safetensors"):
        if older != path:
            older.unlink()


def restore(folder: Path, learner: Learner) -> dict[str, Any] | None:
    """Bring a learner that was just begun to the checkpoint; its notes, or None if there is no whole one."""
    try:
        record = read_object(folder / RECORD)
        path = folder / str(record["file"])
        if path.parent != folder or file_digest(path) != record["sha256"]:
            raise ValueError(f"{path.name} was altered")
        learner.load_state_dict(load_file(path))
        return dict(record["notes"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        print(f"the checkpoint in {folder} is damaged ({error}); the run begins anew.", flush=True)
        return None


def steps_of(folder: Path) -> int:
    """After how many steps the checkpoint was written, as its record says; 0 where there is none."""
    try:
        return int(read_object(folder / RECORD)["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
