"""How far a job is: a bar on a terminal, elsewhere a plain line now and then; both on stderr.

A flow asks its job for lines of JSON instead (``job_output.py``), one per second.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from flows.reporting import job_output
from flows.reporting.artifact_text import describe, percent_of

LINE_SECONDS = 10.0
"""Between two plain lines; a shorter stage prints none."""
Report = Callable[..., None]
"""``report(done, total, note="")``: call it as often as you like; the note is a few words on how it goes."""


def bar(console: Console | None = None) -> Progress:
    """Our progress bars all look like this. They go to stderr unless another console is given."""
    return Progress(
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim"),
        console=console or Console(stderr=True),
    )


@contextmanager
def silent(stage: str, unit: str) -> Iterator[Report]:
    """:func:`progress` that shows nothing, for requests that run side by side."""
    yield lambda done, total, note="": None


@contextmanager
def progress(stage: str, unit: str) -> Iterator[Report]:
    """Show the progress of one stage while the block runs.

    Args:
        stage: a few words, such as ``embed passages``.
        unit: what is counted, such as ``passages``.
    """
    if job_output.is_asked_for():
        lines = _Lines(stage, unit, show=_write_json, every=1.0)
        lines.report(0, 0)
        yield lines.report
        lines.show_newest()
    elif sys.stderr.isatty():
        with bar() as shown:
            task = shown.add_task(stage, total=None, unit=unit, note="")
            yield lambda done, total, note="": shown.update(task, completed=done, total=total, note=note)
    else:
        lines = _Lines(stage, unit, show=_print_words, every=LINE_SECONDS, first_after=LINE_SECONDS)
        yield lines.report
        if lines.shown:
            lines.show_newest()


class _Lines:
    """Shows the newest report and its rate, at most once every `every` seconds."""

    def __init__(
        self,
        stage: str,
        unit: str,
        *,
        show: Callable[[dict, float], None],
        every: float,
        first_after: float = 0.0,
    ):
        self._of, self._show, self._every = {"stage": stage, "unit": unit}, show, every
        self._next = time.monotonic() + first_after
        self._first: tuple[float, int] | None = None
        self._newest: dict | None = None
        self.shown = False

    def report(self, done: int, total: int, note: str = "") -> None:
        self._first = self._first or (time.monotonic(), done)
        self._newest = self._of | {"done": done, "total": total} | ({"note": note} if note else {})
        if time.monotonic() >= self._next:
            self.show_newest()

    def show_newest(self) -> None:
        if self._newest is None or self._first is None:
            return
        begun, before = self._first
        now = time.monotonic()
        self._show(self._newest, (self._newest["done"] - before) / max(now - begun, 1e-9))
        self.shown, self._newest, self._next = True, None, now + self._every


def _write_json(progress: dict, rate: float) -> None:
    job_output.write(job_output.PROGRESS, progress)


def _print_words(progress: dict, rate: float) -> None:
    """For people: ``embed passages: 1,200 of 26,000 passages, 4.6 %, 130 per second, 0:03:11 left``."""
    words = [describe(progress)]
    if progress["total"]:
        words.append(f"{percent_of(progress)} %")
    if rate > 0:
        words.append(f"{rate:,.3g} per second")
        if progress["total"] > progress["done"]:
            left = timedelta(seconds=round((progress["total"] - progress["done"]) / rate))
            words.append(f"{left} left")
    print(", ".join(words), file=sys.stderr, flush=True)
