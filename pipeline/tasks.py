"""Running a stage's parts as Ray tasks: bounded in flight, results in order, progress, plain errors."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Any

import ray

from pipeline.cores import available_cores as available_cores

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
) -> list[Any]:
    """Call `function` on each tuple of arguments in Ray tasks and return the results in the same order.

    Args:
        report: called as tasks finish, with the sum of their `weights` (default: their number).

    Raises:
        Exception: the first task's own error (see :func:`unwrap`). After that, as after whatever else ends the
            wait (an interrupt, say), the others are cancelled.
    """
    weights = weights or [1] * len(arguments)
    task = ray.remote(function).options(num_cpus=num_cpus, num_gpus=num_gpus)
    limit = max(2, 2 * int(ray.cluster_resources().get("CPU", 1)))
    results: list[Any] = [None] * len(arguments)
    running: dict[ray.ObjectRef, int] = {}
    done, following = 0, 0
    try:
        while following < len(arguments) or running:
            while following < len(arguments) and len(running) < limit:
                running[task.remote(*arguments[following])] = following
                following += 1
            ready, _ = ray.wait(list(running), num_returns=1)
            number = running.pop(ready[0])
            results[number] = ray.get(ready[0])
            done += weights[number]
            report(done, sum(weights))
    except BaseException as error:
        for reference in running:
            ray.cancel(reference, force=True)
        if isinstance(error, ray.exceptions.RayError):
            raise unwrap(error) from error
        raise
    return results


def share(value: Any) -> Any:
    """Stand-in for a large argument of many tasks, which is then stored once and not with each of them."""
    return ray.put(value)


def free_cores() -> int:
    """CPUs that a task may reserve to use them all: no more than are free now, so that it need not wait."""
    nodes = sum(1 for node in ray.nodes() if node["Alive"])
    return max(1, min(available_cores(), int(ray.available_resources().get("CPU", 1)) // max(1, nodes)))


def unwrap(error: BaseException) -> BaseException:
    """The ValueError or OSError that a task raised, else the Ray error itself, a fault."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, (ValueError, OSError)) else error


def is_disk_full(error: BaseException) -> bool:
    """Whether `error` says that no space is left."""
    return isinstance(error, OSError) and (error.errno == errno.ENOSPC or "No space left" in str(error))
