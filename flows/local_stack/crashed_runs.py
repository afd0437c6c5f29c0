"""Flow runs whose process ended without saying so: the server would show them as running, and let others wait."""

from __future__ import annotations

from functools import partial

from flows.local_stack.component_commands import WORK_POOL
from flows.local_stack.processes import carrying
from flows.local_stack.state import Stack
from flows.prefect_client.api import ApiError

_ACTIVE = ["PENDING", "RUNNING", "CANCELLING"]


def close(stack: Stack, why: str, *, patience: float = 30.0) -> list[str]:
    """Mark the active runs of the stack's pool that have no process as crashed, and say `why` and how to go on.

    Call this while no worker runs. Returns the runs' names. Raises :class:`ApiError` if the server refuses a request,
    or does not answer it within `patience` seconds.
    """
    ask = partial(stack.api.call, timeout=patience, patience=patience)
    query = {
        "flow_runs": {"state": {"type": {"any_": _ACTIVE}}},
        "work_pools": {"name": {"any_": [WORK_POOL]}},
        "limit": 200,
    }
    closed = []
    for run in ask("POST", "/flow_runs/filter", query):
        if carrying(f"PREFECT__FLOW_RUN_ID={run['id']}"):
            continue
        message = f"{why} To go on with it: prefect flow-run retry {run['id']}"
        state = {"type": "CRASHED", "name": "Crashed", "message": message}
        try:
            # Ask again: the process may have reported its end after the first question.
            if ask("GET", f"/flow_runs/{run['id']}")["state_type"] not in _ACTIVE:
                continue
            ask("POST", f"/flow_runs/{run['id']}/set_state", {"state": state})
        except ApiError as error:
            if error.status != 404:  # deleted meanwhile
                raise
        closed.append(run["name"])
    return closed
