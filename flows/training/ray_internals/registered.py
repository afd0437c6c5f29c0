"""Which checkpoints stand in Ray Train's list of them."""

from __future__ import annotations

import re

from storage_schema.errors import UserError
from storage_schema.json_files import as_object, parse_json

SNAPSHOT = "checkpoint_manager_snapshot.json"
STEP = re.compile(r"step-(\d{9})(?:-(\d+))?")
"""The name of a checkpoint's folder: its step, and which of several checkpoints of that step it is."""


def registered(content: bytes) -> list[str]:
    """The names of the checkpoints' folders by the list's content, the oldest first.

    Empty if the list was cut off or names what is no checkpoint.
    """
    try:
        body = as_object(parse_json(content, SNAPSHOT), SNAPSHOT)
        names = [str(result["checkpoint_dir_name"]) for result in body["checkpoint_results"]]
    except (UserError, KeyError, TypeError):
        return []
    return sorted(names, key=step_and_attempt) if all(map(STEP.fullmatch, names)) else []


def step_and_attempt(name: str) -> tuple[int, int]:
    """What stands in the name of a checkpoint's folder."""
    found = STEP.fullmatch(name)
    assert found, name
    return int(found[1]), int(found[2] or 1)
