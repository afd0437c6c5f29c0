"""What every job shares: reading its settings, a Ray cluster to run on, and how it ends.

A job ends with one line: ``soe-summary {...}`` and exit code 0, or ``error: ...`` and exit code 2 for what
the user can mend (any ValueError); anything else is a fault and keeps its traceback.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from pydantic import ValidationError

from flows.settings import Settings

SUMMARY_PREFIX = "soe-summary "
DATA_CPUS = 1
"""Logical CPUs that training workers without GPUs leave to the reading of their data."""
S = TypeVar("S", bound=Settings)


def main(settings: type[S], run: Callable[[S], dict[str, Any]]) -> None:
    """Parse ``--config``, run the job, print how it ended, and exit."""
    parser = argparse.ArgumentParser(description=settings.__doc__)
    parser.add_argument("--config", default="{}", help="the settings as JSON")
    try:
        summary = run(settings.model_validate_json(parser.parse_args().config))
    except Exception as error:
        message = user_error(error)
        if message is None:
            raise
        sys.stdout.flush()
        print(f"error: {message}", flush=True)
        sys.exit(2)
    print(SUMMARY_PREFIX + json.dumps(summary), flush=True)


def user_error(error: BaseException) -> str | None:
    """One line for an error the user can mend, wherever in the cluster it was raised; None for a fault."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'config'}: {first['msg']} (got {first['input']!r})"
    for raised in _causes(error):
        if isinstance(raised, OSError) and raised.errno == errno.ENOSPC:
            place = raised.filename or "SOE_HOME"
            return f"no space left on the disk of {place}. Free some and run the same command; it resumes."
        if isinstance(raised, PermissionError | NotADirectoryError) and raised.filename:
            return f"{raised.filename}: {raised.strerror}. Choose another place, or make this one writable."
        if isinstance(raised, ValueError) and not hasattr(raised, "cause"):
            return " ".join(str(raised).split())
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and those that Ray and Ray Train wrapped in it."""
    yield error
    inner = [getattr(error, "cause", None), *getattr(error, "worker_failures", {}).values()]
    for raised in inner:
        if isinstance(raised, BaseException):
            yield from _causes(raised)


def connect() -> None:
    """Join the running Ray cluster, or start one in this process for a job run by hand.

    A local cluster has more logical CPUs than a small machine has cores: training workers that held every
    one of them would starve their own data.
    """
    import ray

    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if os.environ.get("RAY_ADDRESS"):
        ray.init()
    else:
        ray.init(address="local", num_cpus=max(4, os.cpu_count() or 1), _node_ip_address="127.0.0.1")


def require_gpus(use_gpu: bool) -> None:
    """Raise ValueError at once if GPUs are asked for and the cluster has none, or one that cannot be used."""
    if not use_gpu:
        return
    import ray

    from pipeline.clustering import check_gpu
    from pipeline.tasks import run_tasks

    if not ray.cluster_resources().get("GPU"):
        raise ValueError(
            "use_gpu is true, but the Ray cluster has no GPU. Start one on a machine with GPUs, "
            "check the driver (nvidia-smi), or set use_gpu=false."
        )
    run_tasks(check_gpu, [()], num_gpus=1)


def require_workers(num_workers: int, use_gpu: bool, *, with_data: bool = False) -> None:
    """Connect, and raise ValueError at once if the cluster can never hold so many workers.

    `with_data`: they read a stream, which wants a CPU beside theirs.
    """
    import ray

    connect()
    kind = "GPU" if use_gpu else "CPU"
    there = int(ray.cluster_resources().get(kind, 0))
    beside = DATA_CPUS if with_data and not use_gpu else 0
    if there < num_workers + beside:
        way_out = "set use_gpu=false or add GPU nodes" if use_gpu else "lower num_workers or add nodes"
        data = " and one for their data" if beside else ""
        raise ValueError(
            f"{num_workers} workers need {num_workers} {kind}s{data}; the Ray cluster has {there}: {way_out}."
        )
