"""``soe up | down``: a Prefect server on SQLite, a process worker, a Ray head and, if asked for, Prometheus.

All of them listen on the loopback interface only. ``state.py`` says where their files are, ``processes.py`` how their
processes are found again.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flows.local_stack import prefect_profile, prometheus
from flows.local_stack import state as stack_state
from flows.local_stack.health import is_up, members
from flows.local_stack.start_components import start_missing
from flows.local_stack.state import PROMETHEUS, Report, Stack, StackError
from flows.local_stack.stop_components import stop_all, stop_begun

METRICS_PORT = 9190
"""Not Prometheus' own 9090: where Debian's package is installed, its service listens there."""


def up(
    *,
    prefect_port: int | None = None,
    dashboard_port: int | None = None,
    ray_port: int | None = None,
    metrics: bool | None = None,
    metrics_port: int | None = None,
    report: Report = lambda component, state: None,
) -> Stack:
    """Start the components that do not run, deploy the flows, and activate the Prefect profile.

    A port that is not given stays what it was; the first time it is 4200 (Prefect), 8265 (Ray's dashboard), 6379 (Ray)
    or 9190 (Prometheus). `metrics` says whether Prometheus belongs to the stack; None: as it was, the first time no.
    Raises :class:`StackError` if a port is in use, or a component ends or does not answer.
    """
    with _lock(report):
        old = stack_state.load()
        stack = _with_ports(old, prefect_port, dashboard_port, ray_port)
        _choose_metrics(stack, metrics, metrics_port)
        if is_up(stack):
            _activate_profile(stack)
            return stack
        stack_state.prepare_folders()
        if stack.metrics_port is not None:
            prometheus.program()
            prometheus.prepare(stack)
        missing = [name for name in stack.components if not stack.alive(name)]
        before = dict(stack.processes)
        try:
            start_missing(stack, missing, report)
            _activate_profile(stack)
        except BaseException:
            stop_begun(stack, before)
            raise
        return stack


def down(report: Report = lambda component, state: None) -> bool:
    """Stop everything and put the former Prefect profile back. Returns whether anything ran."""
    if not stack_state.folder().exists():
        return False
    with _lock(report):
        stack = stack_state.load()
        if stack is None:
            return False
        ran = bool(members(stack))
        stop_all(stack, report)
        stack.save()
        if stack.profile_before is not None:
            prefect_profile.restore(stack.profile_before, stack.api.url)
            stack.profile_before = None
            stack.save()
        return ran


def _with_ports(old: Stack | None, prefect: int | None, dashboard: int | None, ray: int | None) -> Stack:
    """The stack to start: the `old` one if any of its processes run, else a new one on the ports asked for.

    Raises :class:`StackError` if the old one runs on other ports than those asked for.
    """
    asked = {"prefect_port": prefect, "dashboard_port": dashboard, "ray_port": ray}
    known = {name: getattr(old, name) for name in asked} if old else {}
    ports = {"prefect_port": 4200, "dashboard_port": 8265, "ray_port": 6379} | known
    ports |= {name: port for name, port in asked.items() if port is not None}
    if len(set(ports.values())) < 3:
        raise StackError(f"the ports must differ: {', '.join(f'{n} {p}' for n, p in ports.items())}.")
    if old is None:
        return Stack(**ports)
    if members(old):
        for name, port in ports.items():
            if port != known[name]:
                raise StackError(f"the stack runs with {name} {known[name]}, not {port}: `soe down` first.")
        return old
    return Stack(**ports, metrics_port=old.metrics_port, profile_before=old.profile_before)


def _choose_metrics(stack: Stack, wanted: bool | None, port: int | None) -> None:
    """Set Prometheus' port, or None for no Prometheus. Raises :class:`StackError` if it already runs on another one."""
    if wanted is None and port is None:
        chosen = stack.metrics_port
    else:
        chosen = None if wanted is False else port or stack.metrics_port or METRICS_PORT
    if stack.alive(PROMETHEUS) and chosen != stack.metrics_port:
        raise StackError(f"Prometheus runs on port {stack.metrics_port}: `soe down` first.")
    if chosen in (stack.prefect_port, stack.dashboard_port, stack.ray_port):
        raise StackError(f"the ports must differ: {chosen} is asked for twice.")
    stack.metrics_port = chosen


def _activate_profile(stack: Stack) -> None:
    if prefect_profile.is_active(stack.api.url) and stack.profile_before is not None:
        return

    def remember(before: dict[str, Any]) -> None:
        known = stack.profile_before
        # What an earlier `soe up` saved counts for as long as the profile that it wrote is there.
        if known is None or (known["file"], known["settings"]) == (before["file"], before["settings"]):
            stack.profile_before = before
            stack.save()

    wanted = prefect_profile.settings(stack.api.url, stack.api.auth_string or "")
    prefect_profile.activate(wanted, remember)


@contextmanager
def _lock(report: Report) -> Iterator[None]:
    """Let one ``soe up`` or ``soe down`` at a time read and change the stack of this ``SOE_HOME``."""
    stack_state.folder().mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(stack_state.folder() / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("another soe", "waiting")
            fcntl.flock(file, fcntl.LOCK_EX)
            report("another soe", "ready")
        yield
