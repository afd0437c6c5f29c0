"""The Ray session, on loopback, of the benchmarks that need one. They do not time its start."""

from __future__ import annotations

import logging
import os


def start_ray() -> None:
    import ray

    ray.init(
        address="local",
        num_cpus=max(4, os.cpu_count() or 1),  # as our jobs start it: tasks that wait hold a CPU too
        _node_ip_address="127.0.0.1",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=2 << 30,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
