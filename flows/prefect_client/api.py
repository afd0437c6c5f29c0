"""The few calls that we make to a Prefect server's REST API; importing Prefect itself would take seconds."""

from __future__ import annotations

import base64
import json
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flows.http_client import http_client
from storage_schema.errors import UserError

if TYPE_CHECKING:
    import httpx

TERMINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
"""The types of the states in which a flow run stays."""


class ApiError(UserError):
    """The server refused, or did not answer. ``status`` is the HTTP status, 0 without an answer."""

    def __init__(self, message: str, status: int = 0):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class PrefectApi:
    """A Prefect server."""

    url: str
    """With the path ``/api`` and no slash at the end."""
    auth_string: str | None = None
    """``user:password`` of a server with basic authentication."""
    key: str | None = None
    """The API key of a server that wants one instead."""

    @classmethod
    def of_active_profile(cls) -> PrefectApi:
        """The server that ``prefect`` commands reach here. Raises :class:`ApiError` if there is none."""
        from prefect.settings import get_current_settings

        api = get_current_settings().api
        if not api.url:
            raise ApiError(
                "the active Prefect profile has no server (PREFECT_API_URL): start one with `soe up`."
            )
        return cls(
            url=api.url.rstrip("/"),
            auth_string=api.auth_string.get_secret_value() if api.auth_string else None,
            key=api.key.get_secret_value() if api.key else None,
        )

    def call(
        self, method: str, path: str, body: Any = None, *, timeout: float = 60.0, patience: float = 32.0
    ) -> Any:
        """One request; the answer's JSON (None if empty). Raises :class:`ApiError`.

        If the server says that it is busy (503, 429), it is asked again for `patience` seconds.
        """
        waited = 0.0
        for pause in (0.5, 1, 2, 4, 8, 16, float("inf")):
            try:
                return self._call_once(method, path, body, timeout)
            except ApiError as error:
                waited += pause
                if error.status not in (429, 503) or waited > patience:
                    raise
                time.sleep(pause)

    def _call_once(self, method: str, path: str, body: Any, timeout: float) -> Any:
        import httpx

        try:
            answer = http_client().request(
                method, f"{self.url}{path}", json=body, headers=self._credentials(), timeout=timeout
            )
        except httpx.TimeoutException as error:
            raise ApiError(
                f"the Prefect server at {self.url} has not answered within {timeout:.0f} s: it may be busy. "
                "`soe status` says whether it runs."
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ApiError(
                f"no Prefect server answers at {self.url} ({error}): start one with `soe up`."
            ) from error
        if not answer.is_success:
            raise ApiError(_reason(answer), answer.status_code)
        try:
            return answer.json() if answer.content else None
        except ValueError as error:
            raise ApiError(
                f"what answers at {self.url} is not a Prefect server: it sends {answer.content[:40]!r}, and no JSON."
            ) from error

    def health(self) -> str:
        """``up``, ``answers STATUS`` or ``does not answer``, within five seconds."""
        try:
            well = self.call("GET", "/health", timeout=5.0, patience=0.0) is True
        except ApiError as error:
            return f"answers {error.status}" if error.status else "does not answer"
        return "up" if well else "does not answer"

    def healthy(self) -> bool:
        """Whether the server is up."""
        return self.health() == "up"

    def create_flow_run(self, deployment: str, parameters: dict[str, Any]) -> dict[str, Any]:
        """Schedule a run of the deployment ``FLOW/NAME`` to start now. The server checks the parameters."""
        try:
            found = self.call("GET", f"/deployments/name/{deployment}")
        except ApiError as error:
            if error.status == 404:
                raise ApiError(
                    f"no deployment {deployment!r} on {self.url}: see `prefect deployment ls`."
                ) from error
            raise
        return self.call(
            "POST",
            f"/deployments/{found['id']}/create_flow_run",
            {"parameters": parameters, "state": {"type": "SCHEDULED"}, "idempotency_key": str(uuid.uuid4())},
        )

    def flow_run(self, flow_run_id: str) -> dict[str, Any]:
        return self.call("GET", f"/flow_runs/{flow_run_id}")

    def running(self) -> list[dict[str, Any]]:
        """The flow runs that are scheduled for now, pending, running or being cancelled; oldest first."""
        states = ["SCHEDULED", "PENDING", "RUNNING", "CANCELLING", "PAUSED"]
        query = {
            "flow_runs": {"state": {"type": {"any_": states}}},
            "sort": "EXPECTED_START_TIME_ASC",
            "limit": 50,
        }
        return self.call("POST", "/flow_runs/filter", query)

    def ended(self, limit: int) -> list[dict[str, Any]]:
        """The `limit` flow runs that ended last; the latest first."""
        query = {
            "flow_runs": {"state": {"type": {"any_": sorted(TERMINAL)}}},
            "sort": "END_TIME_DESC",
            "limit": limit,
        }
        return self.call("POST", "/flow_runs/filter", query)

    def stages(self, flow_run_id: str) -> list[dict[str, Any]]:
        """The stages of a flow run in the order they began: ``stage, state, done, total, unit, note``."""
        query = {
            "artifacts": {
                "flow_run_id": {"any_": [flow_run_id]},
                "key": {"like_": "-stages"},
                "type": {"any_": ["table"]},
            },
            "sort": "CREATED_DESC",  # of a run that was tried again, the newest attempt's first
            "limit": 20,
        }
        found = self.call("POST", "/artifacts/filter", query)
        tables = (_stages_of(artifact["data"]) for artifact in found)
        return next((rows for rows in tables if rows is not None), [])

    def _credentials(self) -> dict[str, str]:
        if self.auth_string:
            return {"Authorization": "Basic " + base64.b64encode(self.auth_string.encode()).decode()}
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}


def _stages_of(data: Any) -> list[dict[str, Any]] | None:
    """The rows of a table of stages; None for another table, such as one named after a store `two-stages`."""
    try:
        rows = json.loads(data)
    except (TypeError, ValueError):
        return None
    named = isinstance(rows, list) and all(
        isinstance(row, dict) and {"stage", "state"} <= row.keys() for row in rows
    )
    return rows if named else None


def _reason(answer: httpx.Response) -> str:
    """The server's own words, if it gave any."""
    try:
        body = answer.json()
    except ValueError:
        body = None
    if isinstance(body, dict):
        detail = body.get("detail") or body.get("exception_message") or body.get("exception_detail")
        if detail:
            return detail if isinstance(detail, str) else json.dumps(detail)
    return f"{answer.url} answers {answer.status_code} {answer.reason_phrase}"
