"""``soe logs``: the log of a component of the stack, or of a flow run, from its end or as it comes."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from functools import partial
from typing import Any

from flows.cli.follow_run import SILENT_SECONDS, patiently
from flows.local_stack import state as stack_state
from flows.local_stack.component_logs import log_lines
from flows.local_stack.state import COMPONENTS, PROMETHEUS, StackError
from flows.prefect_client.api import TERMINAL, ApiError, PrefectApi
from flows.reporting.local_time import local_time
from storage_schema import layout

POLL_SECONDS = 1.0
PAGE = 200
"""Prefect returns at most so many lines per request."""


def show(what: str | None, *, lines: int, follow: bool) -> int:
    """Print the last `lines` of the log of `what`: a component's name, a flow run's name or id, or None for the newest
    flow run. With `follow`, go on until the run ends. Returns 0.

    Raises ApiError or StackError if there is no such log.
    """
    known = stack_state.load()
    if known is None and what in (*COMPONENTS, PROMETHEUS):
        raise StackError(f"no stack was ever started for SOE_HOME={layout.home()}: start one with `soe up`.")
    if known is not None and what in known.components:
        source = log_lines(what, lines, follow=follow)
    else:
        source = _of_run(PrefectApi.of_active_profile(), what, lines, follow)
    for line in source:
        print(line, flush=True)
    return 0


def _of_run(api: PrefectApi, what: str | None, lines: int, follow: bool) -> Iterator[str]:
    run = _find(api, what)
    yield f"{run['name']} ({run['id']}): {run['state_name'].lower()}"
    newest = _newest(api, run["id"], lines)
    seen = {row["id"] for row in newest}
    yield from map(_line, newest)
    since = newest[-1]["timestamp"] if newest else None
    ask = patiently(SILENT_SECONDS)
    while follow:
        ended = ask(partial(api.flow_run, run["id"]))["state_type"] in TERMINAL
        rows = ask(partial(_ask, api, run["id"], PAGE, order="TIMESTAMP_ASC", since=since))
        fresh = [row for row in rows if row["id"] not in seen]
        yield from map(_line, fresh)
        seen |= {row["id"] for row in fresh}
        since = fresh[-1]["timestamp"] if fresh else since
        if ended and not fresh:
            return
        time.sleep(POLL_SECONDS)


def _find(api: PrefectApi, what: str | None) -> dict[str, Any]:
    """The newest flow run of that name or id. Raises :class:`ApiError` if there is none."""
    chosen: dict[str, Any] = {}
    if what is not None:
        chosen = {"id": {"any_": [what]}} if _is_id(what) else {"name": {"any_": [what]}}
    query = {"flow_runs": chosen, "sort": "START_TIME_DESC", "limit": 1}
    found = api.call("POST", "/flow_runs/filter", query)
    if not found:
        which = f"no flow run {what!r}, and no such component of the stack" if what else "no flow run yet"
        raise ApiError(f"{which}: `soe status` lists both, `prefect flow-run ls` all runs.")
    return found[0]


def _is_id(text: str) -> bool:
    try:
        return bool(uuid.UUID(text))
    except ValueError:
        return False


def _newest(api: PrefectApi, run_id: str, lines: int) -> list[dict]:
    """The last `lines` rows, oldest first.

    Rows that are logged between two requests push known ones onto the second page.
    """
    found: dict[str, dict] = {}
    while len(found) < lines:
        page = _ask(api, run_id, PAGE, order="TIMESTAMP_DESC", offset=len(found))
        found |= {row["id"]: row for row in page if row["id"] not in found}
        if len(page) < PAGE:
            break
    return list(found.values())[:lines][::-1]


def _ask(
    api: PrefectApi, run_id: str, limit: int, *, order: str, since: str | None = None, offset: int = 0
) -> list[dict]:
    chosen: dict[str, Any] = {"flow_run_id": {"any_": [run_id]}}
    if since is not None:
        chosen["timestamp"] = {"after_": since}
    query = {"logs": chosen, "limit": limit, "offset": offset, "sort": order}
    return api.call("POST", "/logs/filter", query)


def _line(row: dict[str, Any]) -> str:
    return f"{local_time(row['timestamp'])} {row['message']}"
