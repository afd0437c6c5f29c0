"""One worker computes all answers. Requests wait for it in a bounded queue, in their order, each with a deadline.

Only the worker's thread uses the models, torch's random numbers and the soup's mapped bank, so no request can disturb
another. A request that waits costs only its place.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from flows.serving.limits import Refused

Answer = TypeVar("Answer")
RECENT = 0.2
"""Weight of the newest job in the running mean of the jobs' seconds."""


class Job:
    """A request in the queue: its deadline, and whether its client still waits."""

    def __init__(self, seconds: float):
        self.seconds, self.deadline = seconds, time.monotonic() + seconds
        self._abandoned = threading.Event()

    def abandon(self) -> None:
        """Say that the client no longer waits: the computation ends at its next :meth:`check`."""
        self._abandoned.set()

    def check(self) -> None:
        """Raises :class:`Refused` when the request was cancelled or timed out. Long computations call it often."""
        if self._abandoned.is_set():
            raise Refused(503, "The request was given up.", code="abandoned")
        if time.monotonic() > self.deadline:
            raise self.late()

    def late(self) -> Refused:
        """The answer to a request that timed out."""
        return Refused(
            504,
            f"No answer within {self.seconds:g} seconds, the wait for other requests included. "
            "Ask for fewer tokens or give less text, or try again when the machine is less busy.",
            code="timeout",
        )


class ComputeQueue:
    """The worker, and the requests that wait for it."""

    def __init__(self, *, max_waiting: int, seconds: float):
        self.max_waiting, self.seconds = max_waiting, seconds
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="compute")
        self._jobs: set[Job] = set()
        self._closed = False
        self._mean_seconds = 1.0

    @property
    def waiting(self) -> int:
        """The number of requests in the queue, the running one included."""
        return len(self._jobs)

    def enter(self) -> Job:
        """Take a place in the queue. Call this in the event loop's thread, like :meth:`run` and :meth:`leave`.

        Raises :class:`Refused` (503) if the queue is full, with Retry-After in seconds, or if the service stops.
        """
        if self._closed:
            raise Refused(503, "The service is stopping.", code="stopping")
        if len(self._jobs) > self.max_waiting:
            seconds = max(1, math.ceil(self._mean_seconds * len(self._jobs)))
            raise Refused(
                503,
                f"{len(self._jobs) - 1} requests wait already; no more are taken. Try again in {seconds} seconds.",
                code="queue_full",
                headers={"Retry-After": str(seconds)},
            )
        job = Job(self.seconds)
        self._jobs.add(job)
        return job

    def leave(self, job: Job) -> None:
        """Give the place back. A computation for the job that still runs ends soon."""
        job.abandon()
        self._jobs.discard(job)

    async def run(self, job: Job, compute: Callable[[], Answer]) -> Answer:
        """Call `compute` in the worker's thread when the job's turn comes; returns its answer.

        Raises what `compute` raises, and :class:`Refused` (504) when the job has timed out.
        """
        future = asyncio.get_running_loop().run_in_executor(self._worker, self._timed, job, compute)
        try:
            return await asyncio.wait_for(future, max(0.0, job.deadline - time.monotonic()))
        except TimeoutError:
            raise job.late() from None

    async def call(self, compute: Callable[[Job], Answer]) -> Answer:
        """:meth:`enter`, :meth:`run` and :meth:`leave` in one."""
        job = self.enter()
        try:
            return await self.run(job, lambda: compute(job))
        finally:
            self.leave(job)

    def close(self) -> None:
        """Take no more requests, give up those that wait, and wait until the running one has ended."""
        self._closed = True
        for job in list(self._jobs):
            job.abandon()
        self._worker.shutdown(wait=True, cancel_futures=True)

    def _timed(self, job: Job, compute: Callable[[], Answer]) -> Answer:
        job.check()  # a request that timed out while it waited costs nothing
        began = time.monotonic()
        try:
            return compute()
        finally:
            self._mean_seconds += RECENT * (time.monotonic() - began - self._mean_seconds)
