"""What every job shares: reading its settings, a Ray cluster to run on, and how it ends.

A job ends with one line: ``soe-summary {...}`` and exit code 0, or ``error: ...`` and exit code 2 for what
the user can mend (``flows/errors.py``); anything else is a fault and keeps its traceback.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from flows.errors import PREFIX, user_error
from flows.settings import Settings
from pipeline.cores import available_cores
from storage_schema.errors import UserError

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
        print(f"{PREFIX}{message}", flush=True)
        sys.exit(2)
    print(SUMMARY_PREFIX + json.dumps(summary), flush=True)


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
        ray.init(address="local", num_cpus=max(4, available_cores()), _node_ip_address="127.0.0.1")


def require_gpus(use_gpu: bool) -> None:
    """Raise ValueError at once if GPUs are asked for and the cluster has none, or one that cannot be used."""
    if not use_gpu:
        return
    import ray

    from pipeline.tasks import run_tasks
    from pipeline.tree.nearest import check_gpu

    if not ray.cluster_resources().get("GPU"):
        raise UserError(
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
        raise UserError(
            f"{num_workers} workers need {num_workers} {kind}s{data}; the Ray cluster has {there}: {way_out}."
        )
