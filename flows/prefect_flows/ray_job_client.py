"""One job on a Ray cluster: check that it can run there, submit it, follow its log, stop it.

The cluster is the one of ``RAY_API_SERVER_ADDRESS`` (or ``RAY_ADDRESS``), its token that of
``RAY_AUTH_TOKEN`` or ``RAY_AUTH_TOKEN_PATH``. A flow is never a Ray driver itself: Ray takes over the
signals by which Prefect cancels.
"""

from __future__ import annotations

import asyncio
import os
import queue
import re
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from flows.errors import PREFIX as ERROR_PREFIX
from flows.reporting import job_output
from storage_schema.errors import UserError

LOST_SECONDS = 60.0
"""A cluster that does not answer for so long is given up."""
ANSWER_SECONDS = 30.0
"""A request that is not answered for so long counts as not answered."""
ASK_AGAIN_SECONDS = 0.5
_TAIL_LINES = 12
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
Answer = TypeVar("Answer")
Note = Callable[[str], None]
"""Receives one line of the job's log, without its end of line."""


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

    return _patiently(reach, nobody)


def check_resources(client: JobSubmissionClient, *, cpus: int = 0, gpus: int = 0) -> None:
    """Raise :class:`JobError` if the cluster's living nodes have fewer logical CPUs or GPUs than these."""
    found = _patiently(
        lambda: _get(client, "/nodes?view=summary"), "the Ray cluster does not list its nodes."
    )
    if found is None:
        raise JobError(
            "the Ray cluster does not list its nodes: its dashboard lacks them. Install ray[default] there."
        )
    nodes = [node["raylet"] for node in found["data"]["summary"]]
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
    """Start ``python -m <module> --config <config_json>`` on the cluster.

    Raises :class:`JobError` if the cluster does not take it. If only its answer is lost, the job is there all the same.
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
        if _patiently(lambda: _job(client, job_id), _lost(job_id)) is None:
            raise JobError(f"the Ray cluster did not take the job {job_id}: {error}") from error


def still_running(client: JobSubmissionClient, job_ids: Iterator[str] | list[str]) -> str | None:
    """The first of these jobs that has not ended; None if there is none.

    Raises :class:`JobError` if the cluster does not say: a second job beside a running one would be the worse answer.
    """

    def runs(job_id: str) -> bool:
        return not _ended(_patiently(lambda: _job(client, job_id), _lost(job_id)))

    return next(filter(runs, job_ids), None)


def follow(client: JobSubmissionClient, job_id: str, note: Note) -> dict:
    """Pass every line of the job's log to `note` until it ends; return its summary.

    Raises :class:`JobError` with the job's ``error:`` line, or the end of its log, if it did not succeed; and if the
    cluster does not answer for ``LOST_SECONDS``, or no longer knows the job.
    """
    log, passed = _Log(note), 0
    lines: queue.SimpleQueue = queue.SimpleQueue()
    ended = threading.Event()
    threading.Thread(target=_tail, args=(client, job_id, lines, ended), daemon=True).start()
    answered = time.monotonic()
    try:
        while True:
            try:
                log.take(lines.get(timeout=ASK_AGAIN_SECONDS))
                passed += 1
                continue
            except queue.Empty:
                pass
            try:
                if _ended(job := _job(client, job_id)):
                    break
                answered = time.monotonic()
            except OSError as error:
                if time.monotonic() - answered > LOST_SECONDS:
                    raise JobError(f"{_lost(job_id)} ({error})") from error
    finally:
        ended.set()
    if job is None:
        raise JobError(
            f"the Ray cluster knows no job {job_id} any more: it was started anew. Run the flow again."
        )
    try:
        rest = _patiently(lambda: _log_of(client, job_id), "")[passed:]
    except JobError:
        rest = []  # how the job ended is known, whether or not the end of its log still is
    for line in rest:
        log.take(line)
    return log.outcome(job)


def stop(client: JobSubmissionClient, job_id: str, *, patience: float = 20.0) -> bool:
    """Stop the job and wait until it has ended. Returns whether it had to be stopped.

    Asked again and again, because a job that is only about to start may ignore the first time, and a cluster may
    not answer. Raises :class:`JobError` if the job has not ended in all that time, as far as the cluster says.
    """
    deadline, asked = time.monotonic() + patience, False
    why: object = "it goes on"
    while True:
        try:
            if _ended(_job(client, job_id)):
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


def _ended(job: dict[str, Any] | None) -> bool:
    return job is None or JobStatus(job["status"]) not in _RUNNING


def _job(client: JobSubmissionClient, job_id: str) -> dict[str, Any] | None:
    """``status, message, driver_exit_code`` of a job; None if the cluster knows no such job.

    Raises OSError if there is no answer, or one that says nothing of the job: a gateway's error, a dashboard's.
    """
    return _get(client, f"/api/jobs/{job_id}")


def _log_of(client: JobSubmissionClient, job_id: str) -> list[str]:
    """All lines of the job's log; errors as :func:`_job`."""
    found = _get(client, f"/api/jobs/{job_id}/logs")
    return _lines(found["logs"] or "") if found else []


def _get(client: JobSubmissionClient, path: str) -> dict[str, Any] | None:
    answer = client._do_request("GET", path)
    if answer.status_code == 404:
        return None
    if answer.status_code != 200:
        raise ConnectionError(f"{path} was answered with {answer.status_code} {answer.text[:200]}")
    return answer.json()  # what is no JSON is an OSError of requests


def _patiently(ask: Callable[[], Answer], otherwise: str) -> Answer:
    """What the cluster answers, asked again for ``LOST_SECONDS``; then raises :class:`JobError` with `otherwise`."""
    begun = time.monotonic()
    while True:
        try:
            return ask()
        except OSError as error:
            if time.monotonic() - begun > LOST_SECONDS:
                raise JobError(f"{otherwise} ({error})") from error
        time.sleep(ASK_AGAIN_SECONDS)


def _lost(job_id: str) -> str:
    return (
        f"the Ray cluster no longer answers; the job {job_id} is lost, and may still be running. Once the cluster "
        "answers, retry the flow run: it follows a job that still runs."
    )


class _Log:
    """Passes lines on and remembers those that say how it went."""

    def __init__(self, note: Note):
        self._note = note
        self._last: list[str] = []
        self._error: str | None = None
        self._summary: dict = {}

    def take(self, line: str) -> None:
        self._note(line)
        if told := job_output.read(line):
            if told.kind == job_output.SUMMARY:
                self._summary = told.body
            return
        if line.startswith(ERROR_PREFIX):
            self._error = line.removeprefix(ERROR_PREFIX)
        self._last = [*self._last, line][-_TAIL_LINES:]

    def outcome(self, job: dict[str, Any]) -> dict:
        """The summary of a job that succeeded. Raises :class:`JobError` for any other."""
        if job["status"] == JobStatus.SUCCEEDED:
            return self._summary
        if self._error:
            raise JobError(self._error)
        code = job.get("driver_exit_code")
        how = job.get("message") if code is None else f"exit code {code}"
        raise JobError(f"the job ended {job['status']} ({how}). Its log ends:\n" + "\n".join(self._last))


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
