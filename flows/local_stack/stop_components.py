"""Stop the components of a stack: all of them, or those that a `soe up` which failed had started."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

from flows.local_stack import crashed_runs, processes
from flows.local_stack.processes import Process
from flows.local_stack.state import PROMETHEUS, Report, Stack, StackError
from flows.prefect_client.api import ApiError


def stop_all(stack: Stack, report: Report) -> None:
    """Stop the worker first, so that its flow runs can stop their jobs and report that; then Ray; then the server."""
    patience_of = {"prefect-worker": 15.0, "ray-head": 4.0, "prefect-server": 8.0, PROMETHEUS: 8.0}
    for name in (name for name in patience_of if name in stack.components):
        patience = patience_of[name]
        report(name, "stopping")
        stop_component(stack, name, patience)
        if name == "prefect-worker" and stack.alive("prefect-server"):
            with suppress(ApiError):  # the next `soe up` closes them
                crashed_runs.close(stack, "`soe down` stopped it.", patience=5.0)
        report(name, "stopped")


def stop_component(stack: Stack, name: str, patience: float) -> None:
    """Stop all processes of a component, also those that outlived it."""
    leaders = [stack.processes.pop(name)] if name in stack.processes else []
    left = processes.stop(lambda: processes.members(leaders, stack.mark(name)), patience=patience)
    if left:
        raise StackError(f"processes {sorted(left)} of the {name} do not end.")


def stop_begun(stack: Stack, before: dict[str, Process]) -> None:
    """Stop the components that were started after `before` was noted, and nothing else: a cluster that ran already may
    be in the middle of a long job, and a flow run outlives its worker.
    """
    for name, process in list(stack.processes.items()):
        if process != before.get(name):
            del stack.processes[name]
            processes.stop(partial(processes.members, [process], process.mark), patience=5.0)
            stack.save()
