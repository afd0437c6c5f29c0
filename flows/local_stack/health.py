"""Whether the components of a local stack run and answer."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from flows.http_client import http_client
from flows.local_stack import processes, prometheus
from flows.local_stack import state as stack_state
from flows.local_stack.component_commands import WORK_POOL
from flows.local_stack.state import PROMETHEUS, Stack
from flows.prefect_client.api import ApiError


def is_up(stack: Stack) -> bool:
    """Whether every component runs and answers."""
    everything = all(stack.alive(name) for name in stack.components)
    return everything and stack.api.healthy() and ray_answers(stack) and metrics_answer(stack)


def states(stack: Stack) -> dict[str, str]:
    """The state of each component.

    ``up``: it runs and answers. ``down``: its process has ended. ``does not answer``, ``answers STATUS``: its process
    runs. ``unknown``: only the Prefect server knows whether the worker polls, and the server does not answer.
    """
    asked: dict[str, Callable[[], str]] = {
        "prefect-server": stack.api.health,
        "ray-head": lambda: _said(ray_answers(stack)),
        "prefect-worker": lambda: _worker(stack),
        PROMETHEUS: lambda: _said(metrics_answer(stack)),
    }
    return {name: asked[name]() if stack.alive(name) else "down" for name in stack.components}


def _said(answers: bool) -> str:
    return "up" if answers else "does not answer"


def _worker(stack: Stack) -> str:
    try:
        return _said(worker_is_online(stack))
    except ApiError:
        return "unknown"


def members(stack: Stack) -> set[int]:
    """The process ids of the whole stack."""
    return processes.members(stack.processes.values(), stack.mark())


def ray_answers(stack: Stack) -> bool:
    """Whether the dashboard answers, takes our token, belongs to our Ray head, and lists a living node."""
    import httpx

    try:
        session = _ask_ray(stack, "/api/version")["session_name"]
        ours = Path(os.readlink(stack_state.ray_folder() / "session_latest")).name
        nodes = _ask_ray(stack, "/api/v0/nodes")["data"]["result"]["result"]
    except (OSError, httpx.HTTPError, ValueError, KeyError, TypeError):
        return False
    return session == ours and any(node["state"] == "ALIVE" for node in nodes)


def worker_is_online(stack: Stack) -> bool:
    """Whether a worker polls our pool. Raises :class:`ApiError` if the server does not say."""
    workers = stack.api.call("POST", f"/work_pools/{WORK_POOL}/workers/filter", {}, timeout=5.0, patience=0.0)
    return any(worker["status"] == "ONLINE" for worker in workers)


def metrics_answer(stack: Stack) -> bool:
    """Whether Prometheus answers, or is not part of the stack."""
    return stack.metrics_port is None or prometheus.answers(stack)


def _ask_ray(stack: Stack, path: str) -> dict:
    token = stack_state.token_file().read_text().strip()
    answer = http_client().get(
        f"{stack.dashboard_url}{path}", headers={"Authorization": f"Bearer {token}"}, timeout=5.0
    )
    return answer.raise_for_status().json()
