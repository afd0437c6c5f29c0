"""How far a job is: a bar on a terminal; elsewhere one line of JSON a second, which the flow turns into
a Prefect progress artifact and ``soe`` into a bar again.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

PREFIX = "soe-progress "
Report = Callable[..., None]
"""``report(done, total, note="")``, to be called as often as one likes; the note is a few words on how it goes."""


def bar() -> Progress:
    """The one look of our progress bars."""
    return Progress(
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim"),
    )


@contextmanager
def silent(stage: str, unit: str) -> Iterator[Report]:
    """:func:`progress` for what many ask for at once: nothing is shown."""
    yield lambda done, total, note="": None


@contextmanager
def progress(stage: str, unit: str) -> Iterator[Report]:
    """Show the progress of one stage while the block runs.

    Args:
        stage: a few words, such as ``embed passages``.
        unit: what is counted, such as ``passages``.
    """
    if sys.stderr.isatty():
        with bar() as shown:
            task = shown.add_task(stage, total=None, unit=unit, note="")
            yield lambda done, total, note="": shown.update(task, completed=done, total=total, note=note)
        return
    last: list = [0.0, None]

    def report(done: int, total: int, note: str = "") -> None:
        last[1] = (done, total, note)
        if time.monotonic() - last[0] >= 1.0:
            last[0] = time.monotonic()
            _print_line(stage, unit, done, total, note)

    _print_line(stage, unit, 0, 0)
    yield report
    if last[1]:
        _print_line(stage, unit, *last[1])


def parse_line(line: str) -> dict | None:
    """The progress a log line holds: ``stage, done, total, unit`` and perhaps ``note``; None for any other line."""
    at = line.find(PREFIX)
    if at < 0:
        return None
    try:
        return json.loads(line[at + len(PREFIX) :])
    except ValueError:
        return None


def _print_line(stage: str, unit: str, done: int, total: int, note: str = "") -> None:
    line = {"stage": stage, "done": done, "total": total, "unit": unit} | ({"note": note} if note else {})
    print(PREFIX + json.dumps(line), flush=True)
