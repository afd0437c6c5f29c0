"""Fixtures that several rooms share. Nothing here reaches a network."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_API_SERVER_ADDRESS"] = "http://127.0.0.1:9"  # no dashboard: who asks it hears so at once
os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"  # as session.connect for its own cluster
os.environ["RAY_worker_niceness"] = "0"  # Ray's 15 starves its workers beside other tests
if "PYTEST_XDIST_WORKER" in os.environ:  # as many tests at once as there are cores: threads would only wait
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # who waits for a thread lets others work

import pytest

from tests.lacking import (  # noqa: F401  (hooks)
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_report_teststatus,
    pytest_runtest_setup,
    pytest_sessionfinish,
    pytest_terminal_summary,
)
from tests.s3_server import s3, server  # noqa: F401  (fixtures)

SHARED = ("running", "ray_cluster")
"""Fixtures that take long to start: all tests of one run in the same process (``pytest -n 2 --dist loadgroup``)."""


def pytest_itemcollected(item):
    for name in SHARED:
        if name in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group(name))
            break
    if "running" in getattr(item, "fixturenames", ()):
        item.add_marker("stack")


@pytest.fixture(scope="session")
def ray_cluster():
    """One local Ray cluster for the whole test session, four logical CPUs."""
    import ray

    ray.init(
        address="local",
        _node_ip_address="127.0.0.1",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=256 << 20,
    )
    yield
    ray.shutdown()
