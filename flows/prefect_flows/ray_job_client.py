"""One job on a Ray cluster: check that it can run there, submit it, ask for it, stop it; ``ray_job_log.py`` follows it.

The cluster is the one of ``RAY_API_SERVER_ADDRESS`` (or ``RAY_ADDRESS``), its token that of
``RAY_AUTH_TOKEN`` or ``RAY_AUTH_TOKEN_PATH``. A flow is never a Ray driver itself: Ray takes over the
signals by which Prefect cancels.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from flows.reporting import job_output
from storage_schema.errors import UserError

LOST_SECONDS = 60.0
"""We give up a cluster that does not answer for so long."""
ANSWER_SECONDS = 30.0
"""A request that is not answered for so long counts as not answered."""
ASK_AGAIN_SECONDS = 0.5
Answer = TypeVar("Answer")


class JobError(UserError):
    """The job cannot run, or did not succeed."""


class _Client(JobSubmissionClient):
    """Ray's client waits for an answer without end; this one gives up after ``ANSWER_SECONDS``."""

    def _do_request(self, method: str, endpoint: str, **rest: Any) -> Any:
        return super()._do_request(method, endpoint, **{"timeout": ANSWER_SECONDS} | rest)


def connect() -> JobSubmissionClient:
    """The client of the configured cluster. Raises :class:`JobError` if it does not answer or refuses us."""
    address = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or "auto"
    nobody = (
        f"no Ray cluster answers at {address}: start one with `soe up`, "
        "or set RAY_API_SERVER_ADDRESS to its dashboard's address."
    )

    def reach() -> JobSubmissionClient:
        try:
            return _Client(os.environ.get("RAY_API_SERVER_ADDRESS"))
        except AuthenticationError as error:
            raise JobError(
                f"the Ray cluster at {address} refuses our token: set RAY_AUTH_TOKEN_PATH to its token's file."
            ) from error
        except (ConnectionError, RuntimeError) as error:  # nobody is there; a 5xx is another OSError
            raise JobError(nobody) from error

    return patiently(reach, nobody)


def check_resources(client: JobSubmissionClient, *, cpus: int = 0, gpus: int = 0) -> None:
    """Raise :class:`JobError` if the cluster's living nodes have fewer logical CPUs or GPUs than these."""
    found = patiently(lambda: get(client, "/nodes?view=summary"), "the Ray cluster does not list its nodes.")
    if found is None:
        raise JobError(
            "the Ray cluster does not list its nodes: its dashboard lacks them. Install ray[default] there."
        )
    nodes = [node["raylet"] for node in found["data"]["summary"]]
    alive = [node["resourcesTotal"] for node in nodes if node.get("state") == "ALIVE"]
    for resource, wanted, setting in (
        ("GPU", gpus, "use_gpu=false"),
        ("CPU", cpus, "fewer workers or cores"),
    ):
        there = int(sum(node.get(resource, 0) for node in alive))
        if there < wanted:
            raise JobError(
                f"{wanted} {resource}s are asked for and the Ray cluster has {there}: "
                f"run with {setting}, or on a cluster that has them."
            )


def submission_id(flow_name: str, flow_run_id: str, run_count: int) -> str:
    """The job's id. It follows from the flow run, so that it is known even after the flow's process is dead."""
    return f"{flow_name}-{flow_run_id}-{run_count}"


def submit(
    client: JobSubmissionClient, *, job_id: str, module: str, config_json: str, metadata: dict[str, str]
) -> None:
    """Start ``python -m <module> --config <config_json>`` on the cluster.

    Raises :class:`JobError` if the cluster does not take it; not if the job is there and only the answer was lost.
    """
    variables = {name: os.environ[name] for name in ("SOE_HOME", "HF_HUB_OFFLINE") if name in os.environ}
    try:
        client.submit_job(
            entrypoint=f"python -m {module} --config {shlex.quote(config_json)}",
            submission_id=job_id,
            metadata=metadata,
            runtime_env={"env_vars": variables | job_output.ASKED_FOR_JSON},
        )
    except (OSError, RuntimeError) as error:  # Ray's client raises RuntimeError for an answer of 5xx
        if patiently(lambda: job_of(client, job_id), lost(job_id)) is None:
            raise JobError(f"the Ray cluster did not take the job {job_id}: {error}") from error


def still_running(client: JobSubmissionClient, job_ids: Iterator[str] | list[str]) -> str | None:
    """The first of these jobs that has not ended; None if there is none.

    Raises :class:`JobError` if the cluster does not say, because a second job beside a running one would be worse.
    """

    def runs(job_id: str) -> bool:
        return not has_ended(patiently(lambda: job_of(client, job_id), lost(job_id)))

    return next(filter(runs, job_ids), None)


def stop(client: JobSubmissionClient, job_id: str, *, patience: float = 20.0) -> bool:
    """Stop the job and wait until it has ended. Returns whether it had to be stopped.

    It asks again and again, because a job that is just starting may ignore the first request, and the cluster may not
    answer. Raises :class:`JobError` if the cluster does not say within `patience` seconds that the job has ended.
    """
    deadline, asked = time.monotonic() + patience, False
    why: object = "it goes on"
    while True:
        try:
            if has_ended(job_of(client, job_id)):
                return asked
            asked = True
            client.stop_job(job_id)
        except (OSError, RuntimeError) as error:  # Ray's client raises RuntimeError for an answer of 5xx
            why = error
        if time.monotonic() > deadline:
            raise JobError(
                f"the Ray job {job_id} was not stopped within {patience:.0f} s ({why}). Stop it in Ray's dashboard, "
                f"or with: ray job stop {job_id}"
            )
        time.sleep(ASK_AGAIN_SECONDS)


_RUNNING = {JobStatus.PENDING, JobStatus.RUNNING}


def has_ended(job: dict[str, Any] | None) -> bool:
    """Whether a job, as :func:`job_of` has it, is no longer pending or running."""
    return job is None or JobStatus(job["status"]) not in _RUNNING


def job_of(client: JobSubmissionClient, job_id: str) -> dict[str, Any] | None:
    """``status, message, driver_exit_code`` of a job; None if the cluster knows no such job.

    Raises OSError if there is no answer, or only a gateway's or the dashboard's error.
    """
    return get(client, f"/api/jobs/{job_id}")


def get(client: JobSubmissionClient, path: str) -> dict[str, Any] | None:
    """The JSON at this path of the dashboard; None for 404. Raises OSError for any other answer, or none."""
    # Not Ray's get_job_info: it raises one RuntimeError for a job that is unknown and for a dashboard that ails.
    answer = client._do_request("GET", path)
    if answer.status_code == 404:
        return None
    if answer.status_code != 200:
        raise ConnectionError(f"{path} was answered with {answer.status_code} {answer.text[:200]}")
    return answer.json()  # requests raises an OSError for what is not JSON


def patiently(ask: Callable[[], Answer], otherwise: str) -> Answer:
    """What the cluster answers, asked again for ``LOST_SECONDS``; then raises :class:`JobError` with `otherwise`."""
    begun = time.monotonic()
    while True:
        try:
            return ask()
        except OSError as error:
            if time.monotonic() - begun > LOST_SECONDS:
                raise JobError(f"{otherwise} ({error})") from error
        time.sleep(ASK_AGAIN_SECONDS)


def lost(job_id: str) -> str:
    """The message for a cluster that has not answered for ``LOST_SECONDS``."""
    return (
        f"the Ray cluster no longer answers; the job {job_id} is lost, and may still be running. Once the cluster "
        "answers, retry the flow run: it follows a job that still runs."
    )
