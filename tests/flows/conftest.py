"""One real stack for the whole session: Prefect server, worker, Ray head; its own folders and ports."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from flows.local_stack import processes
from flows.local_stack import state as stack_state
from flows.local_stack.state import Stack
from flows.prefect_client.api import TERMINAL, PrefectApi
from tests.flows.built_store import built, corpus, interrupted, settings  # noqa: F401  (fixtures)
from tests.flows.stand_ins import stand_ins  # noqa: F401  (a fixture)
from tests.toy_store import make_store

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def finish(command: subprocess.Popen[str]) -> Done:
    """Wait for the command's end."""
    stdout, stderr = command.communicate(timeout=120)
    return Done(command.returncode, stdout, stderr)


@dataclass(frozen=True)
class Place:
    """A SOE_HOME and a PREFECT_HOME of their own, and the commands as one would type them there."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        mine = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "RAY_", "SOE_"))}
        return mine | {
            "SOE_HOME": str(self.folder / "soe"),
            "PREFECT_HOME": str(self.folder / "prefect"),
            "PYTHONPATH": str(REPOSITORY),
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "COLUMNS": "250",
            "RAY_worker_niceness": "0",  # on a busy machine Ray's default, 15, makes jobs wait for minutes
        }

    def start(self, *command: str, cwd: Path | str = "/", **variables: str) -> subprocess.Popen[str]:
        """Start a command of the environment's ``bin`` in another folder than the repository."""
        return subprocess.Popen(
            [str(BIN / command[0]), *command[1:]],
            env=self.environment | variables,
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *command: str, cwd: Path | str = "/", **variables: str) -> Done:
        """Run such a command to its end."""
        return finish(self.start(*command, cwd=cwd, **variables))

    def stack(self) -> Stack:
        """The state that ``soe up`` left."""
        before = os.environ.get("SOE_HOME")
        os.environ["SOE_HOME"] = self.environment["SOE_HOME"]
        try:
            return stack_state.load()
        finally:
            os.environ.pop("SOE_HOME") if before is None else os.environ.update(SOE_HOME=before)

    @property
    def api(self) -> PrefectApi:
        password = (self.folder / "soe" / "stack" / "prefect-password").read_text()
        return PrefectApi(url=f"{self.stack().prefect_url}/api", auth_string=password)

    def submit(self, **config) -> str:
        """Schedule a run of the stub; returns the flow run's id."""
        return self.api.create_flow_run("stub/stub", {"config": config})["id"]

    def wait(self, flow_run_id: str, until: set[str] = TERMINAL, seconds: float = 90) -> dict:
        """Wait until the run is in a state of one of these types."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            run = self.api.flow_run(flow_run_id)
            if run["state_type"] in until:
                return run
            time.sleep(0.3)
        raise AssertionError(f"still {run['state_type']} after {seconds} s: {run['state']}")

    def ray(self, path: str) -> dict:
        """The answer of the dashboard to a request that bears the token."""
        import urllib.request

        token = (self.folder / "soe" / "stack" / "ray-token").read_text()
        request = urllib.request.Request(
            f"{self.stack().dashboard_url}{path}", headers={"Authorization": f"Bearer {token}"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.loads(answer.read())


@pytest.fixture()
def place():
    """A place where no stack was ever started."""
    folder = Path(tempfile.mkdtemp(prefix="soe-"))  # short: Ray's sockets lie below it
    yield Place(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def running():
    """A place whose stack is up, with the stub deployed. When it is taken down nothing may be left."""
    folder = Path(tempfile.mkdtemp(prefix="soe-"))
    place = Place(folder)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a killed session takes it down too
    ports = [str(processes.free_port()) for _ in range(4)]
    options = ["--prefect-port", ports[0], "--dashboard-port", ports[1], "--ray-port", ports[2]]
    if shutil.which("prometheus"):
        options += ["--metrics", "--metrics-port", ports[3]]
    try:
        done = place.run("soe", "up", *options)
        assert done.returncode == 0, done.stdout + done.stderr
        file = str(REPOSITORY / "tests" / "flows" / "stub.yaml")
        done = place.run("prefect", "--no-prompt", "deploy", "--all", "--prefect-file", file)
        assert done.returncode == 0, done.stdout + done.stderr
        yield place
    finally:
        before = place.stack()
        done = place.run("soe", "down")
        assert done.returncode == 0, done.stdout + done.stderr
        left = processes.members(before.processes.values(), before.mark())
        assert not left, [psutil.Process(pid).cmdline() for pid in left]
        for port in ports:
            assert processes.port_is_free(int(port))
        assert not (folder / "prefect" / "profiles.toml").exists()
        shutil.rmtree(folder)


WORKERS = 2


@pytest.fixture(scope="session")
def watched(running) -> str:
    """The id of a flow run in which two workers train without end; test_looked_at.py cancels it."""
    make_store(running.folder / "soe/stores/watched", [4000] * 6)
    config = dict(
        name="watched", store="watched", preset="tiny", steps=1_000_000, batch_size=8, sequence_length=16,
        num_experts=3, mixtures_per_step=4, support_size=2, checkpoint_every=20, num_workers=WORKERS,
    )  # fmt: skip
    run = running.api.create_flow_run("pretrain-soe/pretrain-soe", {"config": config})["id"]
    running.wait(run, {"RUNNING"}, 120)

    def trains() -> bool:
        found = running.api.flow_run(run)
        assert found["state_type"] == "RUNNING", found["state"]
        return any("loss" in stage["note"] for stage in running.api.stages(run))

    eventually(trains, 300)
    return run


def eventually(look, seconds: float = 90):
    """What `look` returns, as soon as it is true."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    return found


@dataclass(frozen=True)
class Runs:
    """Runs of the stub that are under way together."""

    gpu: str
    wait: str
    commands: dict[str, subprocess.Popen[str]]


def pytest_collection_modifyitems(items):
    """The tests that kill parts of the stack come last: a flow run does not outlive its worker unseen."""
    items.sort(key=lambda item: "local_stack" in item.path.parts)


@pytest.fixture(scope="session")
def runs(running):
    """One run of each kind, started at once: two by ``soe run``, two by the API (their flow runs' ids)."""
    return Runs(
        wait=running.submit(store="wait"),
        commands={
            "fine": running.start("soe", "run", "stub", "--param", "store=fine"),
            "fail": running.start("soe", "run", "stub/stub", "--config", '{"store": "fail"}'),
        },
        gpu=running.submit(store="fine", use_gpu=True),
    )


@pytest.fixture(scope="session")
def followed(running, runs) -> dict[str, tuple[Done, dict]]:
    """What became of the two ``soe run``: how the command ended, and its flow run."""
    ended = {name: finish(command) for name, command in runs.commands.items()}
    found = {name: re.search(r"\((\S{36})\)", done.stdout) for name, done in ended.items()}
    assert all(found.values()), ended
    return {name: (done, running.api.flow_run(found[name][1])) for name, done in ended.items()}
