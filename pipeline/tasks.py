"""Running a stage's parts as Ray tasks, a bounded number at once, with results in order, progress and plain errors."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Any

import ray

from pipeline.cores import available_cores

Report = Callable[[int, int], None]
"""``report(done, total)``."""


def ignore_progress(done: int, total: int) -> None:
    """A :data:`Report` that shows nothing."""


def run_tasks(
    function: Callable[..., Any],
    arguments: Sequence[tuple],
    *,
    report: Report = ignore_progress,
    weights: Sequence[int] | None = None,
    num_cpus: float = 1,
    num_gpus: float = 0,
    limit: int | None = None,
) -> list[Any]:
    """Call `function` on each tuple of arguments in Ray tasks and return the results in the same order.

    Args:
        report: called whenever a task finishes, with the sum of the `weights` of all finished ones (default: their
            number).
        limit: how many are submitted at once; None: twice as many as Ray has CPUs.

    Raises:
        Exception: the first task's own error (see :func:`unwrap`). Any error, and an interrupt too, cancels the tasks
            that still run.
    """
    weights = weights or [1] * len(arguments)
    total = sum(weights)
    task = ray.remote(function).options(num_cpus=num_cpus, num_gpus=num_gpus)
    limit = limit or max(2, 2 * int(ray.cluster_resources().get("CPU", 1)))
    results: list[Any] = [None] * len(arguments)
    running: dict[ray.ObjectRef, int] = {}
    done, following = 0, 0
    try:
        while following < len(arguments) or running:
            while following < len(arguments) and len(running) < limit:
                running[task.remote(*arguments[following])] = following
                following += 1
            ready, others = ray.wait(list(running), num_returns=1)
            # Each wait looks at all running tasks, thousands on many nodes: so all that are over are taken at once.
            for reference in ready + (
                ray.wait(others, num_returns=len(others), timeout=0)[0] if others else []
            ):
                number = running.pop(reference)
                results[number] = ray.get(reference)
                done += weights[number]
                report(done, total)
    except BaseException as error:
        cancel(list(running))
        if isinstance(error, ray.exceptions.RayError):
            raise unwrap(error) from error
        raise
    return results


def cancel(tasks: Sequence[ray.ObjectRef]) -> None:
    """End tasks, and wait up to 10 s until each is over.

    Ray loses a cancellation that meets a task on its way to its worker (ray-project/ray#24359), and the task would run
    to its end: what is not over after a second is cancelled again.
    """
    left = list(tasks)
    for _ in range(10):
        for task in left:
            ray.cancel(task, force=True)
        left = ray.wait(left, num_returns=len(left), timeout=1)[1] if left else []


def share(value: Any) -> Any:
    """Store a large argument of many tasks once, and return the reference that stands for it in each of them."""
    return ray.put(value)


def free_cores() -> int:
    """How many CPUs a task can reserve without waiting: the cores of a machine, or as many as are free now."""
    nodes = sum(1 for node in ray.nodes() if node["Alive"])
    return max(1, min(available_cores(), int(ray.available_resources().get("CPU", 1)) // max(1, nodes)))


def unwrap(error: BaseException) -> BaseException:
    """The ValueError or OSError that a task raised; any other cause is a fault, and the Ray error is returned."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, (ValueError, OSError)) else error


def is_disk_full(error: BaseException) -> bool:
    """Whether `error` says that the disk is full."""
    return isinstance(error, OSError) and (error.errno == errno.ENOSPC or "No space left" in str(error))
