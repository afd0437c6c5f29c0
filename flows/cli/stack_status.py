"""What ``soe up``, ``soe status`` and ``soe down`` show."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from flows.local_stack import health as stack_health
from flows.local_stack import lifecycle as stack
from flows.local_stack import prefect_profile, prometheus
from flows.local_stack import state as stack_state
from flows.local_stack.state import Stack
from flows.prefect_client.api import ApiError
from flows.reporting.artifact_text import amount
from flows.reporting.local_time import local_time
from storage_schema import layout

_CONSOLE = Console(highlight=False, soft_wrap=True)
ENDED_RUNS = 5


def up(**options: Any) -> int:
    """Start the stack with the `options` of :func:`flows.local_stack.lifecycle.up`, showing each component as it
    comes; returns the exit code.
    """
    with _spinners() as report:
        running = stack.up(**options, report=report)
    _CONSOLE.print("The stack is up.")
    print_places(running)
    _CONSOLE.print("Next: prefect deployment run build-domains      Stop it all: soe down")
    return 0


def down() -> int:
    """Stop the stack; returns the exit code."""
    with _spinners() as report:
        ran = stack.down(report)
    _CONSOLE.print("The stack is down." if ran else f"No stack runs for SOE_HOME={layout.home()}.")
    return 0


def status() -> int:
    """Print what runs, where to look, and how far the flow runs are; 0 if all is up, else 1."""
    known = stack_state.load()
    if known is None or not stack_health.members(known):
        since = " since this machine was started anew" if known and known.of_an_earlier_boot else ""
        _CONSOLE.print(f"No stack runs for SOE_HOME={layout.home()}{since}. Start it with `soe up`.")
        return 1
    states = stack_health.states(known)
    table = Table("component", "state", "process", "log", box=None)
    for name, state in states.items():
        process = "-" if state == "down" else str(known.processes[name].pid)
        table.add_row(name, state, process, str(stack_state.logs_folder() / f"{name}.log"))
    _CONSOLE.print(table)
    print_places(known)
    if states["prefect-server"] == "up":
        runs_are_known = _print_runs(known)
    else:
        runs_are_known = False
        _CONSOLE.print(f"Flow runs: unknown, for the Prefect server {_is(states['prefect-server'])}.")
    if problem := problem_of(states):
        _CONSOLE.print(problem)
    return 0 if runs_are_known and not problem else 1


def problem_of(states: dict[str, str]) -> str | None:
    """What is wrong with components in these states (:func:`flows.local_stack.health.states`), and what to do; None if
    nothing is wrong.
    """
    down = [name for name, state in states.items() if state == "down"]
    if down:
        return f"{', '.join(down)}: down. `soe up` starts what is missing."
    silent = [f"{name} {_is(state)}" for name, state in states.items() if state != "up"]
    if silent:
        return f"Runs, but {', '.join(silent)}: it may be busy, or still starting. Look again; its log says more."
    return None


def _is(state: str) -> str:
    return state if " " in state else f"is {state}"


def print_places(known: Stack) -> None:
    """Where to look, and where the password and the token are."""
    _CONSOLE.print(f"Prefect        {known.prefect_url}   password: {stack_state.password_file()}")
    _CONSOLE.print(f"Ray dashboard  {known.dashboard_url}   token: {stack_state.token_file()}")
    if known.metrics_port is not None:
        _CONSOLE.print(
            f"Prometheus     {known.metrics_url}   user {prometheus.USER}, password: {prometheus.password_file()}"
        )
    _CONSOLE.print(f"SOE_HOME       {layout.home()}")
    if not prefect_profile.is_active(known.api.url):
        _CONSOLE.print("`prefect` commands go elsewhere until `soe up`.")


def _print_runs(known: Stack) -> bool:
    """Print the flow runs under way, and those that ended last. False if the server does not tell."""
    try:
        running, ended = known.api.running(), known.api.ended(ENDED_RUNS)
        deployments = _deployments(known, [*running, *ended])
        stages = {run["id"]: known.api.stages(run["id"]) for run in running}
    except ApiError as error:
        _CONSOLE.print(f"Flow runs: unknown: {error}", markup=False)
        return False
    table = Table("flow run", "of", "state", "stage", "progress", box=None)
    for run in running:
        stage = next(reversed(stages[run["id"]]), None)
        table.add_row(
            run["name"],
            deployments.get(run["deployment_id"], "-"),
            run["state_name"],
            stage["stage"] if stage else "-",
            amount(stage) if stage else "-",
        )
    _CONSOLE.print(table if running else "No flow run is under way." if ended else "No flow runs yet.")
    if ended:
        table = Table("ended last", "of", "state", "when", "after", box=None)
        for run in ended:
            table.add_row(
                run["name"],
                deployments.get(run["deployment_id"], "-"),
                run["state_name"],
                local_time(run["end_time"]) if run["end_time"] else "-",
                _took(run),
            )
        _CONSOLE.print(table)
    return True


def _deployments(known: Stack, runs: list[dict[str, Any]]) -> dict[str, str]:
    """The deployments' names by id; a deployment that was deleted has none."""
    names = {}
    for identity in {run["deployment_id"] for run in runs} - {None}:
        try:
            names[identity] = known.api.call("GET", f"/deployments/{identity}")["name"]
        except ApiError as error:
            if error.status != 404:
                raise
    return names


def _took(run: dict[str, Any]) -> str:
    """Hours, minutes and seconds from the run's start to its end."""
    if not (run["start_time"] and run["end_time"]):
        return "-"
    took = datetime.fromisoformat(run["end_time"]) - datetime.fromisoformat(run["start_time"])
    return str(timedelta(seconds=round(took.total_seconds())))


@contextmanager
def _spinners() -> Iterator[stack.Report]:
    """A line per component: on a terminal with a spinner, elsewhere printed at each change."""
    if not _CONSOLE.is_terminal:
        yield lambda component, state: _CONSOLE.print(f"{component}: {state}")
        return
    columns = (
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description:<16}"),
        TextColumn("{task.fields[state]:<9}"),
    )
    with Progress(*columns, TimeElapsedColumn(), console=_CONSOLE) as shown:
        tasks: dict[str, TaskID] = {}

        def report(component: str, state: str) -> None:
            if component not in tasks:
                tasks[component] = shown.add_task(component, total=1, state=state)
            ended = state in ("ready", "stopped")
            shown.update(tasks[component], state=state, completed=1 if ended else 0)

        yield report
