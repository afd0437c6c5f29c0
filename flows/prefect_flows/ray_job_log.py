"""Following a Ray job: its log line by line as it comes, and how it ended."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from ray.job_submission import JobStatus, JobSubmissionClient

from flows.errors import PREFIX
from flows.prefect_flows import ray_job_client as ray_job
from flows.prefect_flows.ray_job_client import JobError
from flows.reporting import job_output

_LOGGER = logging.getLogger(__name__)
_LAST_LINES = 12
"""Of the log, quoted for a job that failed without an ``error:`` line."""
_CONNECT_AGAIN_SECONDS = 1.0
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
Note = Callable[[str], None]
"""Receives one line of the job's log, without its end of line."""


def follow(client: JobSubmissionClient, job_id: str, note: Note) -> dict:
    """Pass every line of the job's log to `note` until it ends; return its summary.

    Raises :class:`JobError` with the job's ``error:`` line, or the end of its log, if it did not succeed; and if the
    cluster does not answer for ``LOST_SECONDS``, or no longer knows the job.
    """
    log = _Log(note)
    job = asyncio.run(_until_it_ends(client, job_id, log))
    if job is None:
        raise JobError(
            f"the Ray cluster knows no job {job_id} any more: it was started anew. Run the flow again."
        )
    try:
        found = ray_job.patiently(lambda: ray_job.get(client, f"/api/jobs/{job_id}/logs"), "")
    except JobError:
        found = None  # we know how the job ended, even without the end of its log
    whole = _lines(found["logs"] or "") if found else []
    for line in whole[log.passed :]:
        log.take(line)
    return log.outcome(job)


async def _until_it_ends(client: JobSubmissionClient, job_id: str, log: _Log) -> dict[str, Any] | None:
    """Pass the lines on as they come, and while none comes ask whether the job has ended; return it as it ended."""
    lines: asyncio.Queue[str] = asyncio.Queue()
    tail = asyncio.create_task(_tail(client, job_id, lines))
    answered = time.monotonic()
    try:
        while True:
            try:
                async with asyncio.timeout(ray_job.ASK_AGAIN_SECONDS):
                    line = await lines.get()
            except TimeoutError:
                pass
            else:
                log.take(line)
                continue
            try:
                if ray_job.has_ended(job := ray_job.job_of(client, job_id)):
                    return job
                answered = time.monotonic()
            except OSError as error:
                if time.monotonic() - answered > ray_job.LOST_SECONDS:
                    raise JobError(f"{ray_job.lost(job_id)} ({error})") from error
    finally:
        tail.cancel()


async def _tail(client: JobSubmissionClient, job_id: str, lines: asyncio.Queue[str]) -> None:
    """Put every line of the log into `lines`, without end. A broken connection is made again."""
    passed = 0
    while True:
        number = 0
        try:
            async for line in _lines_as_they_come(client, job_id):
                number += 1
                if number > passed:
                    lines.put_nowait(line)
                    passed = number
        except (
            Exception
        ):  # the caller asks for the job's status, and so finds out whether the cluster is gone
            _LOGGER.debug("the connection to the log of %s broke", job_id, exc_info=True)
        await asyncio.sleep(_CONNECT_AGAIN_SECONDS)


async def _lines_as_they_come(client: JobSubmissionClient, job_id: str) -> AsyncIterator[str]:
    """The lines of the job's log from its beginning; ends when the connection does."""
    rest = ""
    async for chunk in client.tail_job_logs(job_id):
        whole, end, rest = (rest + chunk).rpartition("\n")
        for line in _lines(whole + end) if end else ():
            yield line


class _Log:
    """Passes lines on and remembers those that say how it went."""

    def __init__(self, note: Note):
        self._note = note
        self._last: list[str] = []
        self._error: str | None = None
        self._summary: dict = {}
        self.passed = 0

    def take(self, line: str) -> None:
        self.passed += 1
        self._note(line)
        if told := job_output.read(line):
            if told.kind == job_output.SUMMARY:
                self._summary = told.body
            return
        if line.startswith(PREFIX):
            self._error = line.removeprefix(PREFIX)
        self._last = [*self._last, line][-_LAST_LINES:]

    def outcome(self, job: dict[str, Any]) -> dict:
        """The summary of a job that succeeded. Raises :class:`JobError` for any other."""
        if job["status"] == JobStatus.SUCCEEDED:
            return self._summary
        if self._error:
            raise JobError(self._error)
        code = job.get("driver_exit_code")
        how = job.get("message") if code is None else f"exit code {code}"
        raise JobError(f"the job ended {job['status']} ({how}). Its log ends:\n" + "\n".join(self._last))


def _lines(text: str) -> list[str]:
    """The text's lines without colours; of a line that was redrawn in place, its last form."""
    plain = _COLOUR.sub("", text)
    return [line.rstrip("\r").rpartition("\r")[2] for line in plain.removesuffix("\n").split("\n")]
