"""Following a flow run from a terminal: its states, and a bar for each stage, until it ends."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID

from flows.prefect_client.api import TERMINAL, ApiError, PrefectApi
from flows.reporting.artifact_text import describe
from flows.reporting.progress import bar

POLL_SECONDS = 0.5
LINE_SECONDS = 10.0
"""Between two lines about the same stage where there is no terminal to redraw."""
SILENT_SECONDS = 60.0
"""We give up a server that does not answer for so long."""
UNCLAIMED_SECONDS = 30.0
"""If no worker takes a run for so long, we print a hint."""


def follow(api: PrefectApi, flow_run_id: str, *, console: Console) -> dict:
    """Show the progress of the flow run until it ends; return it as the server has it.

    Raises :class:`ApiError` if the server falls silent. Interrupting this leaves the run running.
    """
    try:
        if console.is_terminal:
            with bar(console) as bars:
                return _poll(api, flow_run_id, _Bars(bars))
        return _poll(api, flow_run_id, _Lines(console))
    except KeyboardInterrupt:
        console.print(f"The run goes on. To stop it: prefect flow-run cancel {flow_run_id}")
        sys.exit(130)


def outcome(run: dict) -> str | None:
    """None for a run that completed, else one sentence: the job's ``error:`` line where it left one."""
    if run["state_type"] == "COMPLETED":
        return None
    message = (run.get("state") or {}).get("message") or "no reason given"
    return message if run["state_type"] == "FAILED" else f"{run['state_type'].lower()}: {message}"


class _Bars:
    """On a terminal: one bar per stage."""

    def __init__(self, bars: Progress):
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def state(self, text: str) -> None:
        self._bars.console.print(text, style="dim")

    def stage(self, progress: dict) -> None:
        stage, total = progress["stage"], progress["total"] or None
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total, unit=progress["unit"], note="")
        note = progress.get("note", "")
        self._bars.update(self._tasks[stage], completed=progress["done"], total=total, note=note)


class _Lines:
    """Elsewhere: a line when a stage begins, when it ends, and every few seconds between."""

    def __init__(self, console: Console):
        self._console = console
        self._printed: dict[str, tuple[float, int]] = {}

    def state(self, text: str) -> None:
        self._console.print(text)

    def stage(self, progress: dict) -> None:
        when, done = self._printed.get(progress["stage"], (0.0, -1))
        complete = progress["total"] and progress["done"] == progress["total"]
        if progress["done"] == done or (time.monotonic() - when < LINE_SECONDS and not complete):
            return
        self._printed[progress["stage"]] = (time.monotonic(), progress["done"])
        self._console.print(f"  {describe(progress)}")


def _poll(api: PrefectApi, flow_run_id: str, view: _Bars | _Lines) -> dict:
    since, shown, hinted = time.monotonic(), None, False
    ask = patiently(SILENT_SECONDS)
    while True:
        run = ask(lambda: api.flow_run(flow_run_id))
        for progress in ask(lambda: api.stages(flow_run_id)):
            view.stage(progress)
        if run["state_name"] != shown:
            shown = run["state_name"]
            view.state(f"{run['name']}: {shown.lower()}")
        if run["state_type"] in TERMINAL:
            return run
        if run["state_type"] == "SCHEDULED" and time.monotonic() - since > UNCLAIMED_SECONDS and not hinted:
            hinted = True
            view.state("No worker has taken the run yet: another may hold its place, or see `soe status`.")
        time.sleep(POLL_SECONDS)


def patiently(seconds: float) -> Callable:
    """Return a function that asks a question again, for so many seconds, while the server does not answer or has an
    error of its own (HTTP status 0, or 500 and above).
    """

    def ask(question: Callable[[], Any]) -> Any:
        begun = time.monotonic()
        while True:
            try:
                return question()
            except ApiError as error:
                if 0 < error.status < 500 or time.monotonic() - begun > seconds:
                    raise
                time.sleep(1.0)

    return ask
