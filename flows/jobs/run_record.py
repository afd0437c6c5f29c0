"""What a run was begun with, kept beside its checkpoints in ``run.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from storage_schema.manifest import StoreError, canonical_json, write_atomically


def claimed(folder: Path) -> dict[str, Any]:
    """The settings of the run in `folder`; empty if there is none yet."""
    record = folder / "run.json"
    return json.loads(record.read_text("utf-8")) if record.exists() else {}


def claim_run(folder: Path, settings: dict[str, Any]) -> None:
    """Record the settings of a run; refuse a folder that holds another run's checkpoints.

    Ray Train resumes whatever it finds under the same name, so the check must come first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings, before = json.loads(canonical_json(settings)), claimed(folder)
    if before:
        changed = [key for key in settings if before.get(key) != settings[key]]
        if changed:
            raise StoreError(
                f"{folder} holds another run: {', '.join(changed)} differ. Use another name, or remove the folder."
            )
        return
    write_atomically(folder / "run.json", json.dumps(settings, indent=1))
