"""What ``soe up``, ``soe status`` and ``soe down`` show."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from flows import prefect_profile, prometheus, stack, stack_health, stack_state
from flows.prefect_api import ApiError
from flows.progress_text import amount, parse_description
from flows.stack_state import PROMETHEUS, Stack, StackError
from storage_schema import layout

_CONSOLE = Console(highlight=False, soft_wrap=True)


def up(**options: Any) -> int:
    """Start the stack with the `options` of :func:`flows.stack.up`, showing each component as it comes; returns the
    exit code.
    """
    try:
        with _spinners() as report:
            running = stack.up(**options, report=report)
    except (StackError, ApiError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    _CONSOLE.print("The stack is up.")
    print_places(running)
    _CONSOLE.print("Next: prefect deployment run build-domains      Stop it all: soe down")
    return 0


def down() -> int:
    """Stop the stack; returns the exit code."""
    try:
        with _spinners() as report:
            ran = stack.down(report)
    except StackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    _CONSOLE.print("The stack is down." if ran else f"No stack runs for SOE_HOME={layout.home()}.")
    return 0


def status() -> int:
    """Print what runs, where to look, and how far the flow runs are; 0 if all is up, else 1."""
    try:
        known = stack_state.load()
    except StackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if known is None or not stack_health.members(known):
        _CONSOLE.print(f"No stack runs for SOE_HOME={layout.home()}. Start it with `soe up`.")
        return 1
    answers = {
        "prefect-server": known.api.healthy(),
        "ray-head": stack_health.ray_answers(known),
        "prefect-worker": stack_health.worker_is_online(known),
        PROMETHEUS: stack_health.metrics_answer(known),
    }
    table = Table("component", "state", "process", "log", box=None)
    for name in known.components:
        alive = known.alive(name)
        state = "up" if alive and answers[name] else "does not answer" if alive else "down"
        process = str(known.processes[name].pid) if alive else "-"
        table.add_row(name, state, process, str(stack_state.logs_folder() / f"{name}.log"))
    _CONSOLE.print(table)
    print_places(known)
    if answers["prefect-server"]:
        _print_runs(known)
    everything = all(known.alive(name) and answers[name] for name in known.components)
    if not everything:
        _CONSOLE.print("Something is down: `soe up` starts what is missing.")
    return 0 if everything else 1


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
        _CONSOLE.print(f"`prefect` commands go elsewhere until `prefect profile use {prefect_profile.NAME}`.")


def _print_runs(known: Stack) -> None:
    deployments: dict[str, str] = {}
    table = Table("flow run", "of", "state", "stage", "progress", box=None)
    for run in known.api.running():
        identity = run["deployment_id"]
        if identity and identity not in deployments:
            deployments[identity] = known.api.call("GET", f"/deployments/{identity}")["name"]
        artifacts = known.api.progress(run["id"])
        progress = parse_description(artifacts[-1]["description"]) if artifacts else None
        table.add_row(
            run["name"],
            deployments.get(identity, "-"),
            run["state_name"],
            progress["stage"] if progress else "-",
            amount(progress) if progress else "-",
        )
    _CONSOLE.print(table if table.row_count else "No flow runs.")


@contextmanager
def _spinners() -> Iterator[stack.Report]:
    """A line for each component: spinning on a terminal, printed when it changes elsewhere."""
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
