"""What a job tells the flow that started it: lines on stdout, each a kind and a JSON object.

    soe-progress {"stage": "embed passages", "done": 1200, "total": 26000, "unit": "passages", "note": "..."}
    soe-card {"name": "estimate", "markdown": "# ..."}
    soe-summary {"store": "..."}

The first two are written only where the job's parent asks for them (:data:`ASKED_FOR_JSON`); without that, people get
plain words on stderr (``progress.py``). A summary ends every job that succeeded.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any, NamedTuple

ASKED_FOR_JSON = {"SOE_PROGRESS": "json"}
"""The environment variable of a job whose progress a program reads."""
PROGRESS, CARD, SUMMARY = "progress", "card", "summary"
_LINE = re.compile(r"(?:\(.*\) )?soe-(progress|card|summary) (\{.*\})\s*")
"""Ray puts the process in parentheses before what a worker prints."""


class Told(NamedTuple):
    """One line of a job, read."""

    kind: str
    """``progress``, ``card`` or ``summary``."""
    body: dict[str, Any]


def is_asked_for() -> bool:
    """Whether a program reads this job's progress."""
    return os.environ.items() >= ASKED_FOR_JSON.items()


def write(kind: str, body: dict[str, Any]) -> None:
    """Print one line for the flow."""
    print(f"soe-{kind} {json.dumps(body)}", flush=True)


def write_card(name: str, markdown: str) -> None:
    """Show `markdown` on the run's page, under `name`, if the job is run by a flow."""
    if is_asked_for():
        write(CARD, {"name": name, "markdown": markdown})


def read(line: str) -> Told | None:
    """What a line of a job's log tells; None if it is a line for people."""
    found = _LINE.fullmatch(line)
    try:
        return Told(found[1], json.loads(found[2])) if found else None
    except ValueError:
        return None
