"""The Ray cluster that a job runs on: joined, or started, and whether it can hold what is asked for."""

from __future__ import annotations

import os
import signal
import socket
import threading
from contextlib import suppress
from pathlib import Path

from pipeline.cores import available_cores
from storage_schema.errors import UserError

DATA_CPUS = 1
"""Logical CPUs that training workers without GPUs leave to the reading of their data."""
DASHBOARD = "RAY_API_SERVER_ADDRESS"
"""Where Ray's workers ask for the state of an actor. Without it they ask the head for the address first and, with Ray
2.60, wait for ever: Ray Train then loses 12 seconds at the end of a run, and never sees that its controller died."""

PREEMPTION_WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
"""An actor of Ray Train that sees nodes go. A cluster of one machine has none to lose but itself."""


def connect() -> None:
    """Join the running Ray cluster, or start one in this process for a job run by hand. SIGTERM then is as Ctrl-C.

    A local cluster has more logical CPUs than a small machine has cores: training workers that held every
    one of them would starve their own data.
    """
    import ray

    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    on_sigterm = signal.getsignal(signal.SIGTERM)
    if os.environ.get("RAY_ADDRESS"):
        ray.init()
    else:
        port = _free_port()
        os.environ[DASHBOARD] = f"http://127.0.0.1:{port}"
        os.environ.setdefault(PREEMPTION_WATCHER, "0")
        _hide_token()
        cpus = max(4, available_cores())
        ray.init(address="local", num_cpus=cpus, _node_ip_address="127.0.0.1", dashboard_port=port)
    if threading.current_thread() is threading.main_thread():
        # Ray's own prints a stack trace of C++, and aborts.
        usual = on_sigterm in (signal.SIG_DFL, None)
        signal.signal(signal.SIGTERM, signal.default_int_handler if usual else on_sigterm)


def _hide_token() -> None:
    """Let this user alone enter ~/.ray, where Ray keeps the token of the clusters that it starts, readable by all."""
    with suppress(OSError, RuntimeError):  # no home, or not one's own: Ray itself says what it cannot write
        folder = Path.home() / ".ray"
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


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


def require_workers(
    num_workers: int,
    use_gpu: bool,
    *,
    with_data: bool = False,
    cores: int = 1,
    lower: str | None = None,
) -> None:
    """Connect, and raise ValueError at once if the cluster can never hold so many workers.

    Args:
        with_data: the workers read a stream, which needs one CPU more than theirs.
        cores: CPUs of a worker without a GPU, all on one node.
        lower: the settings that ask for so much, if they are not those of pretrain-soe.
    """
    import ray

    connect()
    kind = "GPU" if use_gpu else "CPU"
    nodes = [int(node["Resources"].get(kind, 0)) for node in ray.nodes() if node["Alive"]]
    there = sum(nodes)
    beside = DATA_CPUS if with_data and not use_gpu else 0
    of_one = 1 if use_gpu else cores
    needed = num_workers * of_one
    if there < needed + beside or sum(node // of_one for node in nodes) < num_workers:
        lower = lower or ("num_workers" if cores == 1 else "num_workers or cores_per_worker")
        way_out = "set use_gpu=false or add GPU nodes" if use_gpu else f"lower {lower}, or add nodes"
        data = " and one for their data" if beside else ""
        who = f"{num_workers} workers need" if num_workers > 1 else "1 worker needs"
        on = f", but not {of_one} on one node for each" if there >= needed + beside else ""
        raise UserError(f"{who} {needed} {kind}s{data}; the Ray cluster has {there}{on}: {way_out}.")
