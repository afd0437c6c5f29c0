"""The settings with which a run began, kept beside its checkpoints in ``run.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from storage_schema.json_files import as_object, parse_json, read_object
from storage_schema.manifest import StoreError, canonical_json, shortened, write_atomically
from storage_schema.versions import version_problem, written_with


def claimed(folder: Path) -> dict[str, Any]:
    """The settings of the run in `folder`; empty if there is none yet.

    Raises StoreError for a record of another schema version, and ValueError for a damaged one.
    """
    record = folder / "run.json"
    if not record.exists():
        return {}
    return settings_in(record.read_bytes(), record)


def settings_in(content: bytes, where: object) -> dict[str, Any]:
    """The settings in the record `where`, whose content this is. Raises as :func:`claimed`."""
    begun = as_object(parse_json(content, where), where)
    # The first records have no version; they are of version 1.
    if "schema_version" in begun and (problem := version_problem(where, begun)):
        raise StoreError(problem)
    return {key: value for key, value in begun.items() if key not in written_with()}


def summary_of(folder: Path) -> dict[str, Any]:
    """What the run in `folder` said at its end; empty where the folder was removed, which a finished soup outlives."""
    summary = folder / "summary.json"
    return read_object(summary) if summary.exists() else {}


def _short(value: Any) -> str:
    return shortened(canonical_json(value))


def claim_run(folder: Path, settings: dict[str, Any]) -> None:
    """Record the settings of a run; refuse a folder that holds another run's checkpoints.

    Ray Train resumes whatever it finds under the same name, so check first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings, before = json.loads(canonical_json(settings)), claimed(folder)
    if before:
        changed = [
            f"{key} was {_short(before.get(key))}, now {_short(value)}"
            for key, value in settings.items()
            # A setting that is off and not in the record may be younger than the run.
            if before.get(key) != value and not (value is False and key not in before)
        ]
        if changed:
            raise StoreError(
                f"{folder} holds another run: {'; '.join(changed)}. Use another name, or remove the folder."
            )
        return
    write_atomically(folder / "run.json", json.dumps(written_with() | settings, indent=1))
