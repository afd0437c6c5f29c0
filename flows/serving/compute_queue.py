"""One worker for all computing: requests wait in a bounded queue, in the order they came, each with a deadline.

Models, torch's random numbers and the soup's mapped bank are touched by this one thread only, so no request can see
another's. What waits costs nothing but its place.
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
"""Weight of the newest job in the mean of how long jobs take."""


class Job:
    """A request's turn: when it must be done, and whether anyone still waits for it."""

    def __init__(self, seconds: float):
        self.seconds, self.deadline = seconds, time.monotonic() + seconds
        self._abandoned = threading.Event()

    def abandon(self) -> None:
        """Nobody waits any more; the computation ends at its next :meth:`check`."""
        self._abandoned.set()

    def check(self) -> None:
        """Raises :class:`Refused` once the time is over or the client gone; long computations call it often."""
        if self._abandoned.is_set():
            raise Refused(503, "The request was given up.", code="abandoned")
        if time.monotonic() > self.deadline:
            raise self.late()

    def late(self) -> Refused:
        """What a client is told whose time is over."""
        return Refused(
            504,
            f"No answer within {self.seconds:g} seconds, the wait for other requests included. "
            "Ask for fewer tokens or give less text, or try again when the machine is less busy.",
            code="timeout",
        )


class ComputeQueue:
    """The worker and those who wait for it."""

    def __init__(self, *, max_waiting: int, seconds: float):
        self.max_waiting, self.seconds = max_waiting, seconds
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="compute")
        self._jobs: set[Job] = set()
        self._closed = False
        self._mean_seconds = 1.0

    @property
    def waiting(self) -> int:
        """Requests that are being computed or wait for it."""
        return len(self._jobs)

    def enter(self) -> Job:
        """Take a place. Called in the event loop's thread, as :meth:`run` and :meth:`leave`.

        Raises :class:`Refused` (503, with Retry-After in seconds) if the queue is full or the service stops.
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
        """Give the place back; what is still computed for the job ends soon."""
        job.abandon()
        self._jobs.discard(job)

    async def run(self, job: Job, compute: Callable[[], Answer]) -> Answer:
        """The answer of `compute`, called in the worker's thread when its turn comes.

        Raises what `compute` raises; :class:`Refused` (504) once the job's time is over.
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
        """Take no more, give up what waits, and wait for what is being computed to notice."""
        self._closed = True
        for job in list(self._jobs):
            job.abandon()
        self._worker.shutdown(wait=True, cancel_futures=True)

    def _timed(self, job: Job, compute: Callable[[], Answer]) -> Answer:
        job.check()  # those whose time passed while they waited cost nothing
        began = time.monotonic()
        try:
            return compute()
        finally:
            self._mean_seconds += RECENT * (time.monotonic() - began - self._mean_seconds)
