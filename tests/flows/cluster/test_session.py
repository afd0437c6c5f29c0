"""The cluster that a job runs on: whether it can hold what is asked for, and where a cluster of one's own listens."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import ray

from flows.cluster import session
from flows.local_stack import processes
from tests.flows.sockets import LOOPBACK, listening


def test_more_workers_than_the_cluster_has_are_refused_at_once(ray_cluster):
    session.require_workers(4, use_gpu=False)
    with pytest.raises(ValueError, match="5 workers need 5 CPUs; the Ray cluster has 4: lower num_workers"):
        session.require_workers(5, use_gpu=False)
    with pytest.raises(
        ValueError, match="4 workers need 4 CPUs and one for their data; the Ray cluster has 4"
    ):
        session.require_workers(4, use_gpu=False, with_data=True)
    session.require_workers(1, use_gpu=False, with_data=True, cores=3)
    with pytest.raises(
        ValueError, match="2 workers need 6 CPUs.*has 4: lower num_workers or cores_per_worker"
    ):
        session.require_workers(2, use_gpu=False, cores=3)
    with pytest.raises(ValueError, match="1 worker needs 1 GPUs; the Ray cluster has 0: set use_gpu=false"):
        session.require_workers(1, use_gpu=True)


ASKS_IN_A_WORKER = """
from flows.cluster import session
session.connect()
import ray
from ray.util.state import get_actor

@ray.remote(num_cpus=0)
class Asks:
    def state(self):
        return get_actor(ray.get_runtime_context().get_actor_id(), timeout=10).state

print("up", ray.get(Asks.remote().state.remote(), timeout=30))
input()
"""


def test_a_cluster_of_ones_own_is_ones_own_and_its_workers_can_ask_for_an_actor(tmp_path):
    """It listens on loopback alone, and nobody else reads its token."""
    mark = f"SOE_TEST_OF_CONNECT={os.getpid()}"
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    job = subprocess.Popen(
        [sys.executable, "-c", ASKS_IN_A_WORKER],
        env=clean | dict([mark.split("="), ("HOME", str(tmp_path))]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert job.stdout.readline() == "up ALIVE\n"
        addresses = {address for address, _ in listening(set(processes.carrying(mark)))}
        assert addresses and addresses <= LOOPBACK
        token = tmp_path / ".ray/auth_token"
        assert token.exists() and token.parent.stat().st_mode & 0o777 == 0o700
    finally:
        job.communicate("\n", timeout=60)


def test_a_worker_needs_its_cores_on_one_node(ray_cluster, monkeypatch):
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 4.0}}] * 2)
    session.require_workers(2, use_gpu=False, cores=3, with_data=True)
    with pytest.raises(
        ValueError, match="1 worker needs 6 CPUs; the Ray cluster has 8, but not 6 on one node"
    ):
        session.require_workers(1, use_gpu=False, cores=6)
    with pytest.raises(ValueError, match="has 8: lower cores_per_cell, or add nodes"):
        session.require_workers(1, use_gpu=False, cores=9, lower="cores_per_cell")
