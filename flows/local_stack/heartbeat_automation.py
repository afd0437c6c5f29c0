"""What the Prefect server does by itself: close a flow run whose process has fallen silent.

A flow's process reports that it lives (``PREFECT_FLOWS_HEARTBEAT_FREQUENCY``, set by :mod:`flows.local_stack.state`
for the worker). Where a machine is lost with worker and run, nobody else would ever say so, and the run would keep
its place.
"""

from __future__ import annotations

from flows.prefect_client.api import PrefectApi

NAME = "soe: close silent flow runs"
HEARTBEAT_SECONDS = 30
"""Prefect's least."""
SILENT_SECONDS = 120
_ENDED = ("Completed", "Failed", "Cancelled", "Crashed", "TimedOut")


def ensure(api: PrefectApi) -> None:
    """Create the automation on the server, if it is not there. Raises :class:`flows.prefect_client.api.ApiError`."""
    if api.call("POST", "/automations/filter", {"automations": {"name": {"any_": [NAME]}}}):
        return
    heartbeat = "prefect.flow-run.heartbeat"
    body = {
        "name": NAME,
        "description": "A flow run that reported that it lives, and no longer does, ends CRASHED.",
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
                "message": f"Its process has been silent for {SILENT_SECONDS} s. `prefect flow-run retry` goes on "
                "with it: a Ray job that still runs is followed, another is resumed.",
            }
        ],
    }
    api.call("POST", "/automations/", body)
