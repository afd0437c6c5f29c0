"""A pretraining on a real stack, of which one part after another is killed: the soup is the undisturbed one's."""

from __future__ import annotations

import json
import os
import signal
import time

import psutil
import pytest

from flows.local_stack import processes
from flows.local_stack.heartbeat_automation import SILENT_SECONDS
from storage_schema.manifest import read_manifest
from tests.flows.conftest import eventually
from tests.toy_store import make_store

pytestmark = pytest.mark.faults

CONFIG = dict(
    store="faults", preset="tiny", steps=800, batch_size=8, sequence_length=16, mixtures_per_step=4,
    support_size=2, num_experts=3, checkpoint_every=100,
)  # fmt: skip


class Pretraining:
    """A flow run of pretrain-soe."""

    def __init__(self, place, name: str):
        self.place, self.name = place, name
        self.folder = place.folder / "soe/runs" / name
        self.id = place.api.create_flow_run("pretrain-soe/pretrain-soe", {"config": self.config})["id"]

    @property
    def config(self) -> dict:
        return CONFIG | {"name": self.name}

    @property
    def state(self) -> dict:
        return self.place.api.flow_run(self.id)["state"]

    def under_way(self) -> Pretraining:
        """Once its first checkpoint is whole."""
        snapshot = self.folder / "checkpoint_manager_snapshot.json"

        def found() -> bool:
            state = self.state
            assert state["type"] in ("SCHEDULED", "PENDING", "RUNNING"), state
            return snapshot.exists() and "step-" in snapshot.read_text()

        eventually(found, 400)
        return self

    def retry(self) -> Pretraining:
        done = self.place.run("prefect", "flow-run", "retry", self.id)
        assert done.returncode == 0, done
        return self

    def completed(self, seconds: float = 600) -> Pretraining:
        run = self.place.wait(self.id, seconds=seconds)
        assert run["state_type"] == "COMPLETED", run["state"]
        return self

    def jobs(self) -> list[str]:
        """How each of its Ray jobs stands, the first attempt's first."""
        found = {job["submission_id"]: job["status"] for job in self.place.ray("/api/jobs/")}
        return [found[name] for name in sorted(found) if name and self.id in name]

    def kill_flow(self) -> None:
        for pid in processes.carrying(f"PREFECT__FLOW_RUN_ID={self.id}"):
            if any("prefect" in word for word in psutil.Process(pid).cmdline()):
                os.kill(pid, signal.SIGKILL)

    @property
    def digest(self) -> str:
        return read_manifest(self.place.folder / "soe/soups" / self.name, "soup").digest

    @property
    def losses(self) -> dict[int, float]:
        rows = map(json.loads, (self.folder / "log.jsonl").read_text().splitlines())
        return {row["step"]: row["loss"] for row in rows}


@pytest.fixture(scope="module")
def undisturbed(running) -> Pretraining:
    make_store(running.folder / "soe/stores/faults", [400, 0, 300, 900])
    return Pretraining(running, "undisturbed").completed()


def kill(place, component: str, *, group: bool = False) -> None:
    """Kill a component of the stack, or all processes of its group."""
    pid = place.stack().processes[component].pid
    if group:
        os.killpg(os.getpgid(pid), signal.SIGKILL)
    else:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: not place.stack().alive(component), 30)


def up(place) -> None:
    done = place.run("soe", "up")
    assert done.returncode == 0, done.stdout + done.stderr


def same(disturbed: Pretraining, undisturbed: Pretraining) -> None:
    assert disturbed.digest == undisturbed.digest
    assert disturbed.losses == undisturbed.losses


def test_the_prefect_server_is_killed(running, undisturbed):
    """The flow and its job go on without it, and say how they ended once it is there again."""
    run = Pretraining(running, "server").under_way()
    kill(running, "prefect-server", group=True)
    assert "prefect-server" in running.run("soe", "status").stdout
    time.sleep(5)
    up(running)
    same(run.completed(), undisturbed)
    assert run.jobs() == ["SUCCEEDED"]


def test_the_prefect_worker_is_killed(running, undisturbed):
    """Its flow run, which it had started, goes on."""
    run = Pretraining(running, "worker").under_way()
    kill(running, "prefect-worker")
    up(running)
    same(run.completed(), undisturbed)
    assert run.jobs() == ["SUCCEEDED"]


def test_the_ray_head_is_killed(running, undisturbed):
    """The flow run fails and says so; after `soe up` a retry resumes at the newest checkpoint."""
    run = Pretraining(running, "head").under_way()
    kill(running, "ray-head", group=True)
    assert running.wait(run.id, seconds=150)["state_type"] == "FAILED"
    assert "the Ray cluster no longer answers" in run.state["message"]
    up(running)
    same(run.retry().completed(), undisturbed)
    assert run.jobs() == ["SUCCEEDED"]  # the first one's was lost with the cluster


def test_worker_and_flow_are_lost(running, undisturbed):
    """As with their machine: nobody says that the run is over, so the server does. The job goes on meanwhile."""
    run = Pretraining(running, "silent").under_way()
    kill(running, "prefect-worker")
    run.kill_flow()
    lost = time.monotonic()
    assert run.state["type"] == "RUNNING"
    assert running.wait(run.id, seconds=SILENT_SECONDS + 120)["state_type"] == "CRASHED"
    assert f"silent for {SILENT_SECONDS} s" in run.state["message"]
    assert time.monotonic() - lost > SILENT_SECONDS / 2
    up(running)
    same(run.retry().completed(), undisturbed)


def test_a_cancelled_run_resumes(running, undisturbed):
    run = Pretraining(running, "cancelled").under_way()
    assert running.run("prefect", "flow-run", "cancel", run.id).returncode == 0
    assert running.wait(run.id)["state_type"] == "CANCELLED"
    assert run.jobs() == ["STOPPED"]
    reached = max(run.losses)
    same(run.retry().completed(), undisturbed)
    assert run.jobs() == ["STOPPED", "SUCCEEDED"]
    assert 0 < reached < CONFIG["steps"]


def test_a_second_run_of_one_name_is_refused(running, undisturbed):
    """A second one of Prefect's waits in its queue; one that is begun by hand beside it finds the folder taken."""
    run = Pretraining(running, "twice").under_way()
    token = str(running.folder / "soe/stack/ray-token")
    again = running.run(
        *("python", "-m", "flows.jobs.pretrain_soe", "--config", json.dumps(run.config)),
        RAY_ADDRESS=f"127.0.0.1:{running.stack().ray_port}", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=token,
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
    )  # fmt: skip
    assert again.returncode == 2 and "runs/twice is being written by process" in again.stdout, again
    same(run.completed(), undisturbed)


def test_everything_is_asked_to_end(running, undisturbed):
    """SIGTERM to each process of the stack at once, as a machine's shutdown does; then `soe up` and a retry."""
    run = Pretraining(running, "shutdown").under_way()
    known = running.stack()
    for pid in processes.members(known.processes.values(), known.mark()):
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            pass
    eventually(lambda: not processes.members(running.stack().processes.values(), known.mark()), 60)
    up(running)
    state = eventually(lambda: run.state if run.state["type"] not in ("RUNNING", "CANCELLING") else None, 60)
    assert state["type"] in ("CRASHED", "CANCELLED", "FAILED"), state
    same(retried(run).completed(), undisturbed)


def retried(run: Pretraining) -> Pretraining:
    try:
        return run.retry()
    except AssertionError:
        time.sleep(10)  # Prefect 3.8 reports a crash twice, some seconds apart
        return run.retry()
