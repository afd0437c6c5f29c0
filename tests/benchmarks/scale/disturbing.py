"""What is killed while a store is built on Ray nodes: workers in tasks, nodes and the driver. Each kill is kept."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Collection
from concurrent.futures import Future, wait
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.benchmarks.scale.job import STAGE_OF_TASKS

LOOK_SECONDS = 0.02
"""Between two looks at what the workers do; the shortest tasks have some hundredths of a second."""


def disturb_until_over(
    build: Future[Any],
    replace_node: Callable[[], None] | None,
    seconds: float,
    kept: Path,
    stages: Collection[str] = (),
    seed: int = 0,
) -> None:
    """Kill a worker that has a task every so many seconds, and each third time a node.

    The main thread calls this: Ray sets handlers of signals when it starts a node, which no other thread may do.

    Args:
        replace_node: kills a node, and starts a new one; None where there is only the head's.
        stages: kill in these only; empty: in all, and nodes between tasks too.
    """
    kills, chosen, last = 0, random.Random(seed), time.monotonic()
    while not wait([build], LOOK_SECONDS).done:
        if time.monotonic() - last < seconds:
            continue
        busy = working(stages)
        if kills % 3 == 2 and replace_node and (busy or not stages):
            note(kept, "node", task_of(busy))
            replace_node()
        elif busy:
            kill_worker(chosen.choice(busy), kept)
        else:
            continue
        kills, last = kills + 1, time.monotonic()


def kill_driver(driver: psutil.Process, kept: Path) -> None:
    """Kill a driver with its cluster."""
    note(kept, "driver", task_of(working()))
    for process in [*driver.children(recursive=True), driver]:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def kill_worker(worker: psutil.Process, kept: Path) -> None:
    """Kill a worker, if it is still there."""
    task = task_of([worker])
    with suppress(psutil.NoSuchProcess):
        worker.kill()
        note(kept, "worker", task)


def note(kept: Path, what: str, task: str | None) -> None:
    """Add a kill to those that are kept: they outlive a driver that is killed."""
    with open(kept, "a") as file:
        stage = STAGE_OF_TASKS.get(task or "")
        file.write(f"{what}, in {stage}\n" if stage else f"{what}, between tasks\n")


def kills_of(kept: Path) -> dict[str, int]:
    """What was killed in which stage → how often."""
    return dict(Counter(kept.read_text().splitlines())) if kept.exists() else {}


def task_of(busy: list[psutil.Process]) -> str | None:
    """The task of the first of these workers that still has one."""
    for one in busy:
        try:
            return one.cmdline()[0].strip().removeprefix("ray::")
        except (psutil.Error, IndexError):
            continue
    return None


def working(stages: Collection[str] = ()) -> list[psutil.Process]:
    """Ray's workers below this process that are in a task, by the commands that they show.

    Args:
        stages: of the task; empty: any.
    """
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            command = process.cmdline()
            stage = STAGE_OF_TASKS.get(command[0].strip().removeprefix("ray::")) if command else None
            if stage and (not stages or stage in stages):
                found.append(process)
    return found
