"""The same deployments elsewhere: a Ray cluster of several nodes and a Prefect server on PostgreSQL that an operator
started, texts and store on S3. What `soe up` would have done is done by their own commands; only the environment and
prefect.yaml say where things are.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from flows.local_stack import processes
from flows.local_stack.processes import MARK, Process
from flows.local_stack.start_components import PREFECT_FILE
from flows.prefect_client.api import ApiError, PrefectApi
from storage_schema.manifest import read_manifest
from tests import extras
from tests.flows.built_store import write_corpus
from tests.flows.conftest import BIN, REPOSITORY, eventually
from tests.flows.postgres import postgres, programs
from tests.s3_server import upload

STORE = dict(
    store="mine", held_out_fraction=0.1, vocab_size=400, max_seq_length=16, coarse_clusters=3, leaf_clusters=2,
)  # fmt: skip
SOUP = dict(
    name="soup", preset="tiny", steps=20, warmup_steps=2, batch_size=8, sequence_length=16, mixtures_per_step=4,
    support_size=2, num_experts=3, num_workers=2, checkpoint_every=10,
)  # fmt: skip
NODES = 3
"""With one CPU each: two training workers and the task that reads their data take all three."""
FIRST_NODE = "127.0.0.2"  # Ray replaces 127.0.0.1 by an outside address


@dataclass
class Site:
    """Somebody's servers, each started by its own command; all are told from others by a mark."""

    folder: Path
    database: str
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    password: str = field(default_factory=lambda: f"someone:{secrets.token_hex(12)}")
    prefect_port: int = field(default_factory=processes.free_port)
    dashboard_port: int = field(default_factory=processes.free_port)
    ray_port: int = field(default_factory=processes.free_port)
    started: list[Process] = field(default_factory=list)

    @property
    def variables(self) -> dict[str, str]:
        """What flows/OPERATING.md names, and nothing else of ours."""
        token = self.folder / "token"
        if not token.exists():
            token.touch(0o600)
            token.write_text(secrets.token_hex(32))
        return plain_environment(self.folder / "shared") | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_API_SERVER_ADDRESS": f"http://{FIRST_NODE}:{self.dashboard_port}",
            "PREFECT_HOME": str(self.folder / "prefect"),
            "PREFECT_API_URL": f"http://127.0.0.1:{self.prefect_port}/api",
            "PREFECT_API_AUTH_STRING": self.password,
            MARK: self.id,
        }

    def start(self, name: str, *command: str, core: int | None = None, **variables: str) -> None:
        """Start a server; `core`: the only one that it has."""
        bound = [] if core is None else on_cores(core)
        self.started.append(
            processes.start(
                [*bound, str(BIN / command[0]), *command[1:]],
                environment=self.variables | variables,
                log=self.folder / f"{name}.log",
                folder=self.folder,
            )
        )

    def run(self, *command: str) -> str:
        """A command to its end; what it says."""
        return run([str(BIN / command[0]), *command[1:]], self.variables)

    def deployment(self, name: str, config: dict) -> None:
        """Run a deployment to its end."""
        parameters = json.dumps({"config": config})
        self.run("prefect", "deployment", "run", f"{name}/{name}", "--watch", "--params", parameters)

    def stop(self) -> None:
        left = processes.stop(lambda: processes.members(self.started, self.id), patience=15.0)
        assert not left

    @property
    def api(self) -> PrefectApi:
        return PrefectApi(url=self.variables["PREFECT_API_URL"], auth_string=self.password)

    def ray(self, path: str, *, with_token: bool = True) -> dict:
        """What Ray's dashboard answers."""
        token = (self.folder / "token").read_text()
        headers = {"Authorization": f"Bearer {token}"} if with_token else {}
        request = urllib.request.Request(f"{self.variables['RAY_API_SERVER_ADDRESS']}{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())

    def nodes(self) -> int:
        """Living nodes of the cluster."""
        try:
            found = self.ray("/api/v0/nodes")["data"]["result"]["result"]
        except (OSError, KeyError, TypeError):
            return 0
        return sum(node["state"] == "ALIVE" for node in found)


def plain_environment(home: Path) -> dict[str, str]:
    mine = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "RAY_", "SOE_"))}
    return mine | {
        "SOE_HOME": str(home),
        "PYTHONPATH": str(REPOSITORY),
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
        "RAY_worker_niceness": "0",
    }


def on_cores(*numbers: int) -> list[str]:
    """What is put before a command for it to run on these cores; fewer, where the machine has fewer."""
    cores = sorted(os.sched_getaffinity(0))
    return ["taskset", "-c", ",".join(str(cores[number % len(cores)]) for number in numbers)]


def run(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture()
def site(s3):
    """The servers, each by its own command; everything is gone afterwards."""
    if programs() is None:
        extras.missing("PostgreSQL", "Debian's package postgresql")
    folder = Path(tempfile.mkdtemp(prefix="soe-"))  # short: Ray's sockets lie below it
    with postgres() as database:
        site = Site(folder, database)
        try:
            start_prefect(site)
            start_ray(site)
            eventually(site.api.healthy, 240)
            site.run("prefect", "work-pool", "create", "soe", "--type", "process")
            site.run("prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(PREFECT_FILE))
            worker = ["worker", "start", "--pool", "soe", "--type", "process", "--install-policy", "never"]
            site.start("worker", "prefect", *worker)
            yield site
        finally:
            site.stop()
            shutil.rmtree(folder)


def start_prefect(site: Site) -> None:
    site.start(
        "prefect",
        *("prefect", "server", "start", "--host", "127.0.0.1", "--port", str(site.prefect_port)),
        PREFECT_SERVER_DATABASE_CONNECTION_URL=site.database,
        PREFECT_SERVER_API_AUTH_STRING=site.password,
        PREFECT_SERVER_ANALYTICS_ENABLED="false",
    )


def start_ray(site: Site) -> None:
    # On one machine the nodes' fixed ports would collide.
    common = ["--block", "--num-cpus=1", "--object-store-memory=150000000"]
    common += ["--min-worker-port=0", "--max-worker-port=0"]

    def node(number: int) -> list[str]:
        port = processes.free_port()
        return [f"--node-ip-address=127.0.0.{2 + number}", f"--dashboard-agent-listen-port={port}"]

    head = ["--head", f"--port={site.ray_port}", *node(0)]
    head += [f"--dashboard-host={FIRST_NODE}", f"--dashboard-port={site.dashboard_port}"]
    head += [f"--temp-dir={site.folder / 'ray'}", f"--ray-client-server-port={processes.free_port()}"]
    metrics = {
        name: str(processes.free_port()) for name in ("AUTOSCALER_METRIC_PORT", "DASHBOARD_METRIC_PORT")
    }
    site.start("head", "ray", "start", *head, *common, core=0, **metrics)
    eventually(lambda: site.nodes() == 1, 240)
    for number in range(1, NODES):
        address = f"--address={FIRST_NODE}:{site.ray_port}"
        site.start(f"node-{number}", "ray", "start", address, *node(number), *common, core=number)
        # One after the other: of two that come in the same moment, one may not find itself in the list of nodes.
        eventually(lambda: site.nodes() == 1 + number, 240)  # noqa: B023


def digest(home: Path, *, of: str, kind: str) -> str:
    return read_manifest(home / of, kind).digest


async def flow_runs_in(database: str) -> list[tuple[str, str]]:
    import asyncpg

    connection = await asyncpg.connect(database.replace("+asyncpg", ""))
    rows = await connection.fetch(
        "SELECT flow.name, flow_run.state_type FROM flow_run JOIN flow ON flow.id = flow_run.flow_id"
    )
    await connection.close()
    return sorted((row[0], str(row[1])) for row in rows)


@pytest.mark.long
def test_the_deployments_run_on_another_cluster_and_database(site, s3, tmp_path):
    (tmp_path / "corpus").mkdir()
    write_corpus(tmp_path / "corpus" / "corpus.jsonl", 150, seed=0)
    store = STORE | {"corpus": upload(s3, tmp_path / "corpus")}
    site.deployment("build-domains", store)
    shared, alone = site.folder / "shared", tmp_path / "alone"
    far = upload(s3, shared / "stores" / "mine")
    site.deployment("pretrain-soe", SOUP | {"store": far})

    # The same by hand on one machine. Encoder and workers have one core each, as there: sums depend on the threads.
    jobs = ("build_domains", store, [0]), ("pretrain_soe", SOUP | {"store": far}, [0, 1])
    for module, config, cores in jobs:
        command = [sys.executable, "-m", f"flows.jobs.{module}", "--config", json.dumps(config)]
        run([*on_cores(*cores), *command], plain_environment(alone))
    for made, kind in (("stores/mine/domains", "domains"), ("soups/soup", "soup")):
        assert digest(shared, of=made, kind=kind) == digest(alone, of=made, kind=kind)

    workers = [
        actor
        for actor in site.ray("/api/v0/actors?detail=1&limit=1000")["data"]["result"]["result"]
        if "RayTrainWorker" in actor["class_name"]
    ]
    assert len(workers) == 2 and len({actor["node_id"] for actor in workers}) == 2, workers
    assert asyncio.run(flow_runs_in(site.database)) == [
        ("build-domains", "COMPLETED"),
        ("pretrain-soe", "COMPLETED"),
    ]
    with pytest.raises(ApiError) as refused:
        PrefectApi(url=site.api.url).call("POST", "/flow_runs/filter", {})
    assert refused.value.status == 401
    with pytest.raises(urllib.error.HTTPError, match="401"):
        site.ray("/api/jobs/", with_token=False)
