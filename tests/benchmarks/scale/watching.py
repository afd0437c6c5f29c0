"""Seconds, CPU seconds, peak memory, tasks and bytes of their arguments, of each stage of the job in this process.

A stage may hold another one: its own figures are without those of the inner one. *Memory* is what the system cannot
drop (resident less shared).
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import psutil
from ray import cloudpickle

EVERY, LOOK = 0.1, 1.0
"""Seconds between samples of memory, and between looks for new workers."""
UNWATCHED = "-"


@dataclass
class Figures:
    """Of one stage."""

    seconds: float = 0
    cpu_seconds: float = 0
    """Of the driver and its workers."""
    driver_bytes: int = 0
    worker_bytes: int = 0
    """Of the largest worker."""
    workers_bytes: int = 0
    """Of all workers together."""
    tasks: int = 0
    argument_bytes: int = 0
    largest_argument: int = 0
    longest_task: float = 0
    """Seconds."""
    tasks_seconds: float = 0
    """Of all tasks together."""


class Watch(threading.Thread):
    """Watches from ``start()`` until ``stop()``."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.most_disk_bytes = 0
        """The most that was on the disk of `folder` at once, beyond what was there at the start."""
        self._folder, self._free = folder, shutil.disk_usage(folder).free
        self.stages: dict[str, Figures] = {}
        self._stack = [UNWATCHED]
        self._driver = psutil.Process()
        self._workers: list[psutil.Process] = []
        self._spent: dict[int, float] = {}
        self._own = self._since_look = 0.0
        self._going = True
        self._last = (time.monotonic(), self._cpu())

    @contextmanager
    def stage(self, name: str) -> Iterator[Figures]:
        """Count what is done in the block to the stage `name`."""
        self._turn()
        self._stack.append(name)
        try:
            yield self.stages.setdefault(name, Figures())
        finally:
            self._turn()
            self._stack.pop()

    def watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, counted to a stage."""

        def call(*arguments: Any, **options: Any) -> Any:
            with self.stage(name):
                return function(*arguments, **options)

        return call

    def tasks(self, run: Callable[..., Any], stage_of: dict[str, str]) -> Callable[..., Any]:
        """The function `run` (:func:`pipeline.tasks.run_tasks`), its tasks counted to their stages.

        Args:
            stage_of: the stages of functions, by their names; others are of the stage that runs them.
        """

        def call(function: Callable[..., Any], arguments: Sequence[tuple], **options: Any) -> Any:
            with self.stage(UNWATCHED):
                sizes = [len(cloudpickle.dumps(one)) for one in arguments]
            with self.stage(stage_of.get(function.__name__, self._stack[-1])) as figures:
                figures.tasks += len(sizes)
                figures.argument_bytes += sum(sizes)
                figures.largest_argument = max([figures.largest_argument, *sizes])
                found = run(_timed(function), arguments, **options)
                took = [seconds for seconds, _ in found]
                figures.tasks_seconds += sum(took)
                figures.longest_task = max([figures.longest_task, *took])
                return [result for _, result in found]

        return call

    def record(self) -> dict[str, dict[str, float]]:
        """The figures so far, by stage."""
        self._turn()
        return {name: asdict(figures) for name, figures in self.stages.items() if name != UNWATCHED}

    def stop(self) -> None:
        self._going = False
        self.join()

    def run(self) -> None:
        while self._going:
            if time.monotonic() - self._since_look > LOOK:
                self._workers, self._since_look = self._find(), time.monotonic()
            sizes = [size for worker in self._workers if (size := _memory(worker))]
            if (figures := self.stages.get(self._stack[-1])) is not None:
                figures.driver_bytes = max(figures.driver_bytes, _memory(self._driver))
                figures.worker_bytes = max([figures.worker_bytes, *sizes])
                figures.workers_bytes = max(figures.workers_bytes, sum(sizes))
            used = self._free - shutil.disk_usage(self._folder).free
            self.most_disk_bytes = max(self.most_disk_bytes, used)
            self._own = time.thread_time()
            time.sleep(EVERY)

    def _turn(self) -> None:
        """Count what was spent since the last turn to the present stage."""
        now = (time.monotonic(), self._cpu())
        if (figures := self.stages.get(self._stack[-1])) is not None:
            figures.seconds += now[0] - self._last[0]
            figures.cpu_seconds += now[1] - self._last[1]
            figures.driver_bytes = max(figures.driver_bytes, _memory(self._driver))
        self._last = now

    def _cpu(self) -> float:
        """CPU seconds of the driver, without this thread's, and of all workers that there were."""
        for process in {*self._workers, *self._find()}:
            try:
                times = process.cpu_times()
            except psutil.Error:
                continue
            self._spent[process.pid] = times.user + times.system
        times = self._driver.cpu_times()
        return times.user + times.system - self._own + sum(self._spent.values())

    def _find(self) -> list[psutil.Process]:
        """Ray's workers below this process."""
        return [child for child in self._driver.children(recursive=True) if _is_worker(child)]


def _timed(function: Callable[..., Any]) -> Callable[..., tuple[float, Any]]:
    """The function, which also says how many seconds it took."""

    @wraps(function)
    def call(*arguments: Any, **options: Any) -> tuple[float, Any]:
        begun = time.monotonic()
        result = function(*arguments, **options)
        return time.monotonic() - begun, result

    return call


def _is_worker(process: psutil.Process) -> bool:
    try:
        return bool(command := process.cmdline()) and command[0].startswith("ray::")
    except psutil.Error:
        return False


def _memory(process: psutil.Process) -> int:
    try:
        found = process.memory_info()
    except psutil.Error:
        return 0
    return max(0, found.rss - found.shared)
