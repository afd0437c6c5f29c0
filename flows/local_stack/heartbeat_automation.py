"""The automation by which the Prefect server closes a flow run whose process no longer reports that it lives.

The process reports every ``PREFECT_FLOWS_HEARTBEAT_FREQUENCY`` seconds, which :mod:`flows.local_stack.state` sets for
the worker. When a machine fails together with its worker and the run, nobody else would close the run, and it would
block the runs that wait for it.
"""

from __future__ import annotations

from flows.prefect_client.api import PrefectApi

NAME = "soe: close silent flow runs"
HEARTBEAT_SECONDS = 30
"""The smallest value that Prefect allows."""
SILENT_SECONDS = 120
_ENDED = ("Completed", "Failed", "Cancelled", "Crashed", "TimedOut")


def ensure(api: PrefectApi) -> None:
    """Create the automation unless the server has it. Raises :class:`flows.prefect_client.api.ApiError`."""
    if api.call("POST", "/automations/filter", {"automations": {"name": {"any_": [NAME]}}}):
        return
    heartbeat = "prefect.flow-run.heartbeat"
    body = {
        "name": NAME,
        "description": "A flow run that stops reporting that it lives ends CRASHED.",
        "enabled": True,
        "trigger": {
            "type": "event",
            "posture": "Proactive",
            "match": {"prefect.resource.id": "prefect.flow-run.*"},
            "for_each": ["prefect.resource.id"],
            "after": [heartbeat],
            "expect": [heartbeat, *(f"prefect.flow-run.{state}" for state in _ENDED)],
            "threshold": 1,
            "within": SILENT_SECONDS,
        },
        "actions": [
            {
                "type": "change-flow-run-state",
                "state": "CRASHED",
                "message": f"Its process has been silent for {SILENT_SECONDS} s. `prefect flow-run retry` follows its "
                "Ray job if that still runs, and resumes it if it has ended.",
            }
        ],
    }
    api.call("POST", "/automations/", body)
