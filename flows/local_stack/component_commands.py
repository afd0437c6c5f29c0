"""The command line of each component of a local stack."""

from __future__ import annotations

import os
import shutil
import sys

from flows.local_stack import processes, prometheus
from flows.local_stack import state as stack_state
from flows.local_stack.state import Stack
from flows.machine_memory import memory_limit
from pipeline.cores import available_cores

WORK_POOL = "soe"


def command(stack: Stack, component: str) -> list[str]:
    """The command line that starts a component of the stack."""
    return _COMMANDS[component](stack)


def _prefect_server(stack: Stack) -> list[str]:
    options = ["--host", "127.0.0.1", "--port", str(stack.prefect_port), "--analytics-off"]
    return [sys.executable, "-m", "prefect", "--no-prompt", "server", "start", *options]


def _prefect_worker(stack: Stack) -> list[str]:
    options = ["--pool", WORK_POOL, "--type", "process", "--install-policy", "never", "--name", "soe"]
    return [sys.executable, "-m", "prefect", "--no-prompt", "worker", "start", *options]


def _ray_head(stack: Stack) -> list[str]:
    """Ray counts at least four CPUs: training workers must leave some for the tasks that feed them."""
    options = {
        "node-ip-address": "127.0.0.1",
        "port": stack.ray_port,
        "dashboard-host": "127.0.0.1",
        "dashboard-port": stack.dashboard_port,
        "num-cpus": max(4, available_cores()),
        "object-store-memory": _object_store_bytes(),
        "temp-dir": stack_state.ray_folder(),
        "dashboard-agent-listen-port": processes.free_port(),
        "ray-client-server-port": processes.free_port(),
        # 0: any free port. The default, 10002 to 19999, collides with other clusters and with ports chosen here.
        "min-worker-port": 0,
        "max-worker-port": 0,
    }
    words = ["start", "--head", "--block", "--disable-usage-stats"]
    words += [f"--{name}={value}" for name, value in options.items()]
    return [sys.executable, "-m", "ray.scripts.scripts", *words]


_COMMANDS = {
    "prefect-server": _prefect_server,
    "ray-head": _ray_head,
    "prefect-worker": _prefect_worker,
    stack_state.PROMETHEUS: prometheus.command,
}


def _object_store_bytes() -> int:
    """30 % of the memory, at most 4 GB, and no more than a usable ``/dev/shm`` has free."""
    wanted = min(int(0.3 * memory_limit()), 4_000_000_000)
    shared = shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else 0
    return min(wanted, int(0.9 * shared)) if shared > 400_000_000 else wanted
