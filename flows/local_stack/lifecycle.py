"""``soe up | down``: a Prefect server on SQLite, a process worker, a Ray head and, if asked for, Prometheus, all on the
loopback interface. What lies where: ``flows/local_stack/state.py``; how processes are found again:
``flows/local_stack/processes.py``.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from flows.local_stack import crashed_runs as orphans
from flows.local_stack import heartbeat_automation as automations
from flows.local_stack import prefect_profile, processes, prometheus
from flows.local_stack import state as stack_state
from flows.local_stack.component_commands import WORK_POOL, command
from flows.local_stack.health import is_up, members, metrics_answer, ray_answers, worker_is_online
from flows.local_stack.processes import Process
from flows.local_stack.state import PROMETHEUS, Stack, StackError
from flows.prefect_client.api import ApiError

PREFECT_FILE = Path(__file__).parents[1] / "prefect_flows/prefect.yaml"
METRICS_PORT = 9190
"""Not Prometheus' own 9090: where Debian's package is installed, its service listens there."""
START_SECONDS = 180.0
"""After so long a component that does not answer is given up."""
Report = Callable[[str, str], None]
"""``report(component, state)``: ``starting`` or ``waiting``, ``ready``; ``stopping``, ``stopped``."""


def up(
    *,
    prefect_port: int | None = None,
    dashboard_port: int | None = None,
    ray_port: int | None = None,
    metrics: bool | None = None,
    metrics_port: int | None = None,
    report: Report = lambda component, state: None,
) -> Stack:
    """Start whatever of the stack is not running, deploy the flows, and activate the Prefect profile.

    A port that is not given is the one of last time, at first 4200 (Prefect), 8265 (Ray's dashboard), 6379 (Ray) and
    9190 (Prometheus). `metrics` says whether Prometheus belongs to the stack; None: as last time, at first no. Raises
    :class:`StackError` on a port in use, or when a component ends instead of answering.
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
            _start_missing(stack, missing, report)
            _activate_profile(stack)
        except BaseException:
            _stop_begun(stack, before)
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
        _stop_all(stack, report)
        stack.save()
        if stack.profile_before is not None:
            prefect_profile.restore(stack.profile_before, stack.api.url)
            stack.profile_before = None
            stack.save()
        return ran


def _with_ports(old: Stack | None, prefect: int | None, dashboard: int | None, ray: int | None) -> Stack:
    """The stack to start: the `old` one if it runs or keeps its ports, else a new one.

    Raises :class:`StackError` if the old one runs with other ports than those asked for.
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
    """Set the port of Prometheus, or that there is none. Raises :class:`StackError` if it runs otherwise."""
    if wanted is None and port is None:
        chosen = stack.metrics_port
    else:
        chosen = None if wanted is False else port or stack.metrics_port or METRICS_PORT
    if stack.alive(PROMETHEUS) and chosen != stack.metrics_port:
        raise StackError(f"Prometheus runs on port {stack.metrics_port}: `soe down` first.")
    if chosen in (stack.prefect_port, stack.dashboard_port, stack.ray_port):
        raise StackError(f"the ports must differ: {chosen} is asked for twice.")
    stack.metrics_port = chosen


def _start_missing(stack: Stack, missing: list[str], report: Report) -> None:
    for name in missing:
        if name != "prefect-worker":  # the flow runs of a dead worker go on by themselves
            _stop(stack, name, patience=5.0)
    for name in missing:
        _check_ports(stack, name)
    for name in ("ray-head", "prefect-server", PROMETHEUS):
        if name in missing:
            _start(stack, name, report)
    if "prefect-server" not in missing:
        report("prefect-server", "waiting")
    _wait(stack, "prefect-server", stack.api.healthy)
    report("prefect-server", "ready")
    report("deployments", "starting")
    _make_work_pool(stack)
    if "prefect-worker" in missing:
        orphans.close(stack, "Its process ended with the stack.")
        _start(stack, "prefect-worker", report)
    _deploy(stack)
    automations.ensure(stack.api)
    report("deployments", "ready")
    _wait(stack, "ray-head", lambda: ray_answers(stack))
    report("ray-head", "ready")
    _wait(stack, "prefect-worker", lambda: worker_is_online(stack))
    report("prefect-worker", "ready")
    if stack.metrics_port is not None:
        _wait(stack, PROMETHEUS, lambda: metrics_answer(stack))
        report(PROMETHEUS, "ready")


def _start(stack: Stack, name: str, report: Report) -> None:
    report(name, "starting")
    if name == "ray-head":
        _clear_ray_folder()
    log = stack_state.logs_folder() / f"{name}.log"
    if log.exists():
        log.replace(log.with_suffix(".log.1"))
    stack.processes[name] = processes.start(
        command(stack, name),
        environment=stack_state.environment(stack, name)
        | (prometheus.for_ray(stack) if name == "ray-head" else {}),
        log=log,
        folder=stack_state.folder(),
    )
    stack.save()


def _clear_ray_folder() -> None:
    """The logs of the session before say why it ended: they are kept, the rest is of no use."""
    logs, kept = stack_state.ray_folder() / "session_latest/logs", stack_state.former_ray_logs()
    if logs.is_dir():
        shutil.rmtree(kept, ignore_errors=True)
        logs.rename(kept)
    shutil.rmtree(stack_state.ray_folder(), ignore_errors=True)


def _check_ports(stack: Stack, component: str) -> None:
    ports: dict[str, dict[str, Any]] = {
        "prefect-server": {"--prefect-port": stack.prefect_port},
        "ray-head": {"--dashboard-port": stack.dashboard_port, "--ray-port": stack.ray_port},
        PROMETHEUS: {"--metrics-port": stack.metrics_port},
    }
    for option, port in ports.get(component, {}).items():
        if not processes.port_is_free(port):
            raise StackError(
                f"port {port} is in use by another program: choose another with `soe up {option} PORT`."
            )


def _wait(stack: Stack, component: str, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        if not stack.alive(component):
            raise StackError(f"the {component} ended while starting. {_tail(component)}")
        with suppress(ApiError):
            if ready():
                return
        if time.monotonic() > deadline:
            raise StackError(
                f"the {component} does not answer after {START_SECONDS:.0f} s. {_tail(component)}"
            )
        time.sleep(0.2)


def _tail(component: str) -> str:
    log = stack_state.logs_folder() / f"{component}.log"
    lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    taken = next((line.strip() for line in lines if "already in use" in line), None)
    if taken:
        return f"Another program has taken a port: {taken}. Choose ports with the options of `soe up`."
    return "\n".join([f"The end of {log}:", *(f"  {line}" for line in lines[-8:])])


def _make_work_pool(stack: Stack) -> None:
    try:
        stack.api.call("POST", "/work_pools/", {"name": WORK_POOL, "type": "process"})
    except ApiError as error:
        if error.status != 409:  # it is there already
            raise


def _deploy(stack: Stack) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "prefect",
            "--no-prompt",
            "deploy",
            "--all",
            "--prefect-file",
            str(PREFECT_FILE),
        ],
        env=stack_state.environment(stack, "prefect-worker"),
        cwd=stack_state.folder(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    (stack_state.logs_folder() / "deploy.log").write_text(done.stdout)
    if done.returncode:
        raise StackError(f"the deployments were refused. {_tail('deploy')}")


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


def _stop_all(stack: Stack, report: Report) -> None:
    """The worker first, so that its flow runs can stop their jobs and say so; then Ray; then the server."""
    patience_of = {"prefect-worker": 15.0, "ray-head": 4.0, "prefect-server": 8.0, PROMETHEUS: 8.0}
    for name in (name for name in patience_of if name in stack.components):
        patience = patience_of[name]
        report(name, "stopping")
        _stop(stack, name, patience)
        if name == "prefect-worker" and stack.alive("prefect-server"):
            with suppress(ApiError):  # the next `soe up` closes them
                orphans.close(stack, "`soe down` stopped it.", patience=5.0)
        report(name, "stopped")


def _stop(stack: Stack, name: str, patience: float) -> None:
    """Stop one component with all its processes, those left of a dead one too."""
    leaders = [stack.processes.pop(name)] if name in stack.processes else []
    left = processes.stop(lambda: processes.members(leaders, stack.mark(name)), patience=patience)
    if left:
        raise StackError(f"processes {sorted(left)} of the {name} do not end.")


def _stop_begun(stack: Stack, before: dict[str, Process]) -> None:
    """Stop what was started since these were the components' processes, and nothing else: a cluster that was up may be
    in the middle of a long job, and a flow run outlives its worker.
    """
    for name, process in list(stack.processes.items()):
        if process != before.get(name):
            del stack.processes[name]
            processes.stop(partial(processes.members, [process], process.mark), patience=5.0)
            stack.save()


@contextmanager
def _lock(report: Report) -> Iterator[None]:
    """One ``soe up`` or ``soe down`` at a time for a ``SOE_HOME``: the state is read and written under it."""
    stack_state.folder().mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(stack_state.folder() / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("another soe", "waiting")
            fcntl.flock(file, fcntl.LOCK_EX)
            report("another soe", "ready")
        yield
