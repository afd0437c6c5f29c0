"""Start the components of a stack that do not run, wait until they answer, and deploy the flows."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from flows.local_stack import component_logs, crashed_runs, heartbeat_automation, processes, prometheus
from flows.local_stack import state as stack_state
from flows.local_stack.component_commands import WORK_POOL, command
from flows.local_stack.component_logs import why_it_ended
from flows.local_stack.health import metrics_answer, ray_answers, worker_is_online
from flows.local_stack.state import PROMETHEUS, Report, Stack, StackError
from flows.local_stack.stop_components import stop_component
from flows.prefect_client.api import ApiError

PREFECT_FILE = Path(__file__).parents[1] / "prefect_flows/prefect.yaml"
START_SECONDS = 180.0
"""A component that has not answered by then counts as failed."""


def start_missing(stack: Stack, missing: list[str], report: Report) -> None:
    """Start the components named in `missing`, and wait until every component of the stack answers.

    Raises :class:`StackError` if a port is in use, a component ends or does not answer, or the deployment fails.
    """
    for name in missing:
        if name != "prefect-worker":  # its flow runs go on without it
            stop_component(stack, name, patience=5.0)
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
        crashed_runs.close(stack, "Its process ended with the stack.")
        _start(stack, "prefect-worker", report)
    _deploy(stack)
    heartbeat_automation.ensure(stack.api)
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
    stack.processes[name] = processes.start(
        command(stack, name),
        environment=stack_state.environment(stack, name)
        | (prometheus.for_ray(stack) if name == "ray-head" else {}),
        log=component_logs.set_aside(name),
        folder=stack_state.folder(),
    )
    stack.save()


def _clear_ray_folder() -> None:
    """Keep the logs of the session before, which say why it ended; delete the rest of it."""
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
            raise StackError(f"the {component} ended while starting. {why_it_ended(component)}")
        with suppress(ApiError):
            if ready():
                return
        if time.monotonic() > deadline:
            raise StackError(
                f"the {component} does not answer after {START_SECONDS:.0f} s. {why_it_ended(component)}"
            )
        time.sleep(0.2)


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
    component_logs.log_file("deploy").write_text(done.stdout)
    if done.returncode:
        raise StackError(f"the deployments were refused. {why_it_ended('deploy')}")
