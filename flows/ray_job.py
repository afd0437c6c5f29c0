"""One job on a Ray cluster: check that it can run there, submit it, follow its log, stop it.

The cluster is the one of ``RAY_API_SERVER_ADDRESS`` (or ``RAY_ADDRESS``), its token that of
``RAY_AUTH_TOKEN`` or ``RAY_AUTH_TOKEN_PATH``. A flow is never a Ray driver itself: Ray takes over the
signals by which Prefect cancels.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import re
import shlex
import threading
import time
from collections.abc import Callable, Iterator

from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from flows.jobs.progress import PREFIX

ERROR_PREFIX = "error: "
SUMMARY_PREFIX = "soe-summary "
LOST_SECONDS = 60.0
"""A cluster that does not answer for so long is given up."""
_TAIL_LINES = 12
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
Note = Callable[[str], None]
"""Receives one line of the job's log, without its end of line."""


class JobError(RuntimeError):
    """The job cannot run, or did not succeed; the message is for the user."""


def connect() -> JobSubmissionClient:
    """The client of the configured cluster. Raises :class:`JobError` if it does not answer or refuses us."""
    address = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or "auto"
    try:
        return JobSubmissionClient(os.environ.get("RAY_API_SERVER_ADDRESS"))
    except AuthenticationError as error:
        raise JobError(
            f"the Ray cluster at {address} refuses our token: set RAY_AUTH_TOKEN_PATH to its token's file."
        ) from error
    except (ConnectionError, RuntimeError, OSError) as error:
        raise JobError(
            f"no Ray cluster answers at {address}: start one with `soe up`, "
            "or set RAY_API_SERVER_ADDRESS to its dashboard's address."
        ) from error


def check_resources(client: JobSubmissionClient, *, cpus: int = 0, gpus: int = 0) -> None:
    """Raise :class:`JobError` if the cluster's living nodes have fewer logical CPUs or GPUs than these."""
    answer = client._do_request("GET", "/nodes?view=summary")
    if answer.status_code != 200:
        raise JobError(f"the Ray cluster does not list its nodes: {answer.status_code} {answer.text}")
    nodes = [node["raylet"] for node in answer.json()["data"]["summary"]]
    alive = [node["resourcesTotal"] for node in nodes if node.get("state") == "ALIVE"]
    for resource, wanted, setting in (("GPU", gpus, "use_gpu=false"), ("CPU", cpus, "fewer workers")):
        there = int(sum(node.get(resource, 0) for node in alive))
        if there < wanted:
            raise JobError(
                f"{wanted} {resource}s are asked for and the Ray cluster has {there}: "
                f"run with {setting}, or on a cluster that has them."
            )


def submission_id(flow_name: str, flow_run_id: str, run_count: int) -> str:
    """The job's id: known to whoever knows the flow run, also after the flow's process is dead."""
    return f"{flow_name}-{flow_run_id}-{run_count}"


def submit(
    client: JobSubmissionClient, *, job_id: str, module: str, config_json: str, metadata: dict[str, str]
) -> None:
    """Start ``python -m <module> --config <config_json>`` on the cluster."""
    variables = {name: os.environ[name] for name in ("SOE_HOME", "HF_HUB_OFFLINE") if name in os.environ}
    client.submit_job(
        entrypoint=f"python -m {module} --config {shlex.quote(config_json)}",
        submission_id=job_id,
        metadata=metadata,
        runtime_env={"env_vars": variables},
    )


def still_running(client: JobSubmissionClient, job_ids: Iterator[str] | list[str]) -> str | None:
    """The first of these jobs that has not ended; None if there is none."""
    return next((job_id for job_id in job_ids if _status(client, job_id) not in _ENDED), None)


def follow(client: JobSubmissionClient, job_id: str, note: Note) -> dict:
    """Pass every line of the job's log to `note` until it ends; return its summary.

    Raises :class:`JobError` with the job's ``error:`` line, or the end of its log, if it did not succeed.
    """
    log, passed = _Log(note), 0
    lines: queue.SimpleQueue = queue.SimpleQueue()
    ended = threading.Event()
    threading.Thread(target=_tail, args=(client, job_id, lines, ended), daemon=True).start()
    answered = time.monotonic()
    try:
        while True:
            try:
                log.take(lines.get(timeout=0.5))
                passed += 1
                continue
            except queue.Empty:
                pass
            try:
                if _status(client, job_id) in _ENDED:
                    break
                answered = time.monotonic()
            except (ConnectionError, OSError) as error:
                if time.monotonic() - answered > LOST_SECONDS:
                    raise JobError(f"the Ray cluster no longer answers; the job {job_id} is lost.") from error
    finally:
        ended.set()
    for line in _lines(client.get_job_logs(job_id))[passed:]:
        log.take(line)
    return log.outcome(client.get_job_info(job_id))


def stop(client: JobSubmissionClient, job_id: str, *, patience: float = 20.0) -> bool:
    """Stop the job and wait until it has ended. Returns whether it had to be stopped.

    Asked again every second, because a job that is only about to start may ignore the first time.
    """
    if _status(client, job_id) in _ENDED:
        return False
    deadline = time.monotonic() + patience
    while _status(client, job_id) not in _ENDED and time.monotonic() < deadline:
        client.stop_job(job_id)
        time.sleep(1.0)
    return True


_ENDED = {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED, None}


def _status(client: JobSubmissionClient, job_id: str) -> JobStatus | None:
    """None if the cluster knows no such job."""
    answer = client._do_request("GET", f"/api/jobs/{job_id}")
    return JobStatus(answer.json()["status"]) if answer.status_code == 200 else None


class _Log:
    """Passes lines on and remembers those that say how it went."""

    def __init__(self, note: Note):
        self._note = note
        self._last: list[str] = []
        self._error: str | None = None
        self._summary: dict = {}

    def take(self, line: str) -> None:
        self._note(line)
        if PREFIX in line:
            return
        if line.startswith(ERROR_PREFIX):
            self._error = line.removeprefix(ERROR_PREFIX)
        if line.startswith(SUMMARY_PREFIX):
            self._summary = json.loads(line.removeprefix(SUMMARY_PREFIX))
        self._last = [*self._last, line][-_TAIL_LINES:]

    def outcome(self, info: JobDetails) -> dict:
        """The summary of a job that succeeded. Raises :class:`JobError` for any other."""
        if info.status == JobStatus.SUCCEEDED:
            return self._summary
        if self._error:
            raise JobError(self._error)
        code = info.driver_exit_code
        how = info.message if code is None else f"exit code {code}"
        raise JobError(f"the job ended {info.status} ({how}). Its log ends:\n" + "\n".join(self._last))


def _tail(client: JobSubmissionClient, job_id: str, lines: queue.SimpleQueue, ended: threading.Event) -> None:
    """Put every line of the log into `lines` until `ended`. A broken connection is made again."""
    passed = 0
    while not ended.is_set():
        try:
            for number, line in enumerate(_lines_as_they_come(client, job_id)):
                if number >= passed:
                    lines.put(line)
                    passed = number + 1
        except Exception:
            # Whether the cluster is gone for good is for the one who asks for the job's status to decide.
            pass
        ended.wait(1.0)


def _lines_as_they_come(client: JobSubmissionClient, job_id: str) -> Iterator[str]:
    """The lines of the job's log from its beginning; ends when the connection does."""
    loop = asyncio.new_event_loop()
    chunks = client.tail_job_logs(job_id)
    rest = ""
    try:
        while True:
            try:
                chunk = loop.run_until_complete(anext(chunks))
            except StopAsyncIteration:
                return
            whole, end, rest = (rest + chunk).rpartition("\n")
            if end:
                yield from _lines(whole + end)
    finally:
        loop.run_until_complete(chunks.aclose())
        loop.close()


def _lines(text: str) -> list[str]:
    """The text's lines without colours; of a line that was redrawn in place, its last form."""
    plain = _COLOUR.sub("", text)
    return [line.rstrip("\r").rpartition("\r")[2] for line in plain.removesuffix("\n").split("\n")]
