"""A running stack against strangers: other machines, other users, web pages. In the long suite two workers train.

What stands open on the loopback interface is listed here, door by door (OPEN_PAGES, OPEN_RPCS, `unlocked`).
"""

from __future__ import annotations

import json
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from flows.local_stack import processes
from flows.prefect_client.api import ApiError, PrefectApi
from tests import extras
from tests.flows.conftest import WORKERS
from tests.flows.doors import grpc_answers, http, routes, rpcs
from tests.flows.elsewhere import elsewhere
from tests.flows.sockets import LOOPBACK, datagrams, listening, peers

OPEN_PAGES = {"/", "/favicon.ico", "/static", "/api/authentication_mode"}
"""Of Ray's dashboard: what the page that asks for the token is made of."""
OPEN_HEALTH = {"/api/healthz", "/api/gcs_healthz", "/api/local_raylet_healthz"}
OPEN_RPCS = ["/grpc.health.v1.Health/Check", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"]
"""Of Ray's gRPC servers: whether they live, and the names of their services."""
JOB = json.dumps({"entrypoint": "true"}).encode()


def members(place) -> set[int]:
    known = place.stack()
    return processes.members(known.processes.values(), known.mark())


def secrets(place) -> tuple[str, str]:
    folder = place.folder / "soe" / "stack"
    return (folder / "prefect-password").read_text(), (folder / "ray-token").read_text()


def logs(place) -> Path:
    return place.folder / "soe" / "stack" / "ray" / "session_latest" / "logs"


def _command(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.NoSuchProcess:  # it has ended
        return ""


def _variables(pid: int) -> list[str]:
    """As the kernel shows them: psutil ends at the first gap."""
    try:
        return Path(f"/proc/{pid}/environ").read_text("utf-8", "replace").split("\0")
    except OSError:  # it has ended
        return [""]


def _commands(place) -> list[str]:
    return [_command(pid) for pid in members(place)]


def test_prefect_wants_its_password(running):
    url, (password, _) = running.stack().prefect_url, secrets(running)
    api = PrefectApi(url=f"{url}/api", auth_string=password)
    paths = api.call("GET", "/openapi.json")["paths"]
    asked = [
        (method.upper(), "/api" + re.sub(r"{[^}]*}", "x", path).removeprefix("/api"))
        for path, methods in paths.items()
        for method in methods
    ]
    assert len(asked) > 150
    statuses = _ask_all(url, asked, {})
    assert {door for door, status in statuses.items() if status != 401} == {
        ("GET", "/api/health"),
        ("GET", "/api/ready"),
    }
    for guess in ("soe:guess", password[:-1], ":"):
        with pytest.raises(ApiError) as caught:
            PrefectApi(url=api.url, auth_string=guess).call("POST", "/deployments/filter", {})
        assert caught.value.status == 401
    assert api.call("POST", "/deployments/filter", {})


SOCKETS = ["events/in", "events/out", "logs/out", "task_runs/subscriptions/scheduled"]


@pytest.mark.parametrize("path", [*SOCKETS, "work_pools/soe/workers/connect"])
def test_prefects_web_sockets_want_its_password(running, path):
    from websockets.exceptions import WebSocketException
    from websockets.sync.client import connect

    url = f"ws://127.0.0.1:{running.stack().prefect_port}/api/{path}"
    for subprotocols, first in ((None, None), (["prefect"], None), (["prefect"], "soe:guess")):
        with pytest.raises((WebSocketException, OSError)):  # closed, before the first word or instead of it
            with connect(url, subprotocols=subprotocols, proxy=None, open_timeout=20) as connection:
                connection.send(json.dumps({"type": "auth", "token": first}))
                connection.recv(timeout=20)


def test_ray_wants_its_token(running):
    url, (_, token) = running.stack().dashboard_url, secrets(running)
    doors = routes(logs(running) / "dashboard.log")
    assert len(doors) > 50 and ("POST", "/api/jobs/") in doors
    _check(url, doors, OPEN_PAGES | OPEN_HEALTH, token)
    assert http(f"{url}/api/version", headers={"Authorization": f"Bearer {token}"}) == 200


def test_the_agent_of_the_node_wants_the_token(running):
    doors = routes(logs(running) / "dashboard_agent.log")
    assert {("POST", "/api/job_agent/jobs/"), ("GET", "/logs")} <= doors
    [option] = re.findall(r"--listen-port=(\d+)", " ".join(_commands(running)))[:1]
    _check(f"http://127.0.0.1:{option}", doors, OPEN_HEALTH, secrets(running)[1])
    [of_environments] = [port.number for port in listeners(running) if "RuntimeEnvAgent" in port.owner]
    for path in ("get_or_create_runtime_env", "delete_runtime_env_if_possible", "get_runtime_envs_info"):
        assert http(f"http://127.0.0.1:{of_environments}/{path}", "POST", body=b"x") == 401


def _check(url: str, doors: set[tuple[str, str]], public: set[str], token: str) -> None:
    """Without the token and with another one, no door opens but the public ones."""
    authenticate = ("POST", "/api/authenticate")
    for headers, refused in (({}, 401), ({"Authorization": f"Bearer {token[::-1]}"}, 403)):
        statuses = _ask_all(url, doors, headers)
        opened = {door for door, status in statuses.items() if status != refused}
        assert {path for _, path in opened} <= public, statuses
        assert statuses.get(authenticate, refused) == refused


def _ask_all(url: str, doors, headers) -> dict[tuple[str, str], int]:
    with ThreadPoolExecutor(4) as pool:
        return dict(
            zip(doors, pool.map(lambda door: http(url + door[1], door[0], headers), doors), strict=True)
        )


@pytest.mark.long  # they try again for half a minute; the doors they would use are tried one by one here too
def test_rays_own_commands_get_nowhere_without_the_token(running):
    known = running.stack()
    [client] = re.findall(r"-m ray.util.client.server .*?--port=(\d+)", " ".join(_commands(running)))[:1]
    wrong = running.folder / "wrong-token"
    wrong.write_text("guess" * 8)
    variables = {
        "HOME": str(running.folder / "nobody"),  # where no token lies
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # as the stack: 127.0.0.1 means that
        "RAY_gcs_rpc_server_connect_timeout_s": "2",
        "RAY_gcs_rpc_server_reconnect_timeout_s": "2",
    }
    with_wrong = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(wrong)}
    job = ["ray", "job", "submit", "--address", known.dashboard_url, "--no-wait", "--", "true"]
    init = "import ray; ray.init({!r}, logging_level='ERROR'); print('in')"
    commands = [
        job,
        ["python", "-c", init.format(f"127.0.0.1:{known.ray_port}")],
        ["python", "-c", init.format(f"ray://127.0.0.1:{client}")],
    ]
    started = [
        running.start(*command, **variables | more) for command in commands for more in ({}, with_wrong)
    ]
    for process in started:
        stdout, stderr = process.communicate(timeout=240)
        assert process.returncode not in (0, None) and "in\n" not in stdout, (process.args, stdout, stderr)
    assert all(job["entrypoint"] != "true" for job in running.ray("/api/jobs/"))


@pytest.mark.parametrize("host", ["127.0.0.1", "rebound.example.org"])
def test_a_web_page_cannot_submit(running, host):
    """A page of another site, or one whose name was made to mean 127.0.0.1; with the token it is refused too."""
    known, (password, token) = running.stack(), secrets(running)
    page = {
        "Host": host,
        "Origin": "http://rebound.example.org",
        "Referer": "http://rebound.example.org/",
        "User-Agent": "Mozilla/5.0 (X11; Linux x86_64) Chrome/140.0 Safari/537.36",
        "Sec-Fetch-Site": "cross-site",
        "Content-Type": "text/plain",
    }
    jobs = f"{known.dashboard_url}/api/jobs/"
    before = len(running.ray("/api/jobs/"))
    assert http(jobs, "POST", page, JOB) == 401
    assert http(jobs, "POST", page | {"Cookie": f"ray-authentication-token={token}"}, JOB) == 405
    assert len(running.ray("/api/jobs/")) == before
    [deployment] = [
        d["id"] for d in running.api.call("POST", "/deployments/filter", {}) if d["name"] == "stub"
    ]
    run = f"{known.prefect_url}/api/deployments/{deployment}/create_flow_run"
    assert http(run, "POST", page, b"{}") == 401
    assert http(run, "POST", page | {"Cookie": f"password={password}"}, b"{}") == 401


def test_telemetry_is_off(running):
    known = running.stack()
    told = [_variables(pid) for pid in members(running)]
    # Some of Ray's processes write their title over the memory that the kernel shows their environment from.
    ours = [v for v in told if any(one.startswith(f"{processes.MARK}=") for one in v) and "" not in v[:-1]]
    assert len(ours) >= len(known.processes)
    for variables in ours:
        assert "DO_NOT_TRACK=1" in variables and "RAY_USAGE_STATS_ENABLED=0" in variables
    for name in ("prefect-server", "prefect-worker"):
        variables = _variables(known.processes[name].pid)
        assert "PREFECT_SERVER_ANALYTICS_ENABLED=false" in variables
    assert running.ray("/usage_stats_enabled")["data"]["usageStatsEnabled"] is False
    assert running.api.call("GET", "/admin/settings")["server"]["analytics_enabled"] is False


@dataclass(frozen=True)
class Port:
    number: int
    address: str
    owner: str
    """The command line of the process that listens."""


def listeners(place) -> list[Port]:
    """What the stack listens on now."""
    found = []
    for pid in members(place):
        owner = _command(pid).strip()
        found += [Port(number, address, owner) for address, number in listening({pid})]
    return sorted(found, key=lambda port: port.number)


@pytest.fixture(scope="module", params=[0, pytest.param(WORKERS, marks=pytest.mark.long)])
def training(running, request) -> int:
    """So many workers are training, in the run that tests/flows/test_looked_at.py ends."""
    if request.param:
        request.getfixturevalue("watched")
    return request.param


@pytest.fixture(scope="module")
def ports(running, training) -> list[Port]:
    """What the stack listens on then."""
    return listeners(running)


def test_every_port_is_on_the_loopback_interface(running, ports, training):
    known = running.stack()
    assert {known.prefect_port, known.dashboard_port, known.ray_port} <= {port.number for port in ports}
    assert sum("RayTrainWorker" in port.owner for port in ports) >= training + (training > 0)
    assert not [port for port in ports if port.address not in LOOPBACK]
    assert not datagrams(members(running))
    assert peers(members(running)) <= LOOPBACK


def test_from_another_machine_every_port_is_refused(running, ports):
    extras.needs_root()
    extras.needs_program("ip", package="iproute2")
    with elsewhere() as other:
        with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as seen:
            control = seen.getsockname()[1]
            found = other.connect({port.number for port in ports} | {control})
    assert len(found) == len(other.addresses) * (len({port.number for port in ports}) + 1)
    for door, what in found.items():
        assert what == ("open" if door.endswith(f" {control}") else "ECONNREFUSED"), door


def test_every_grpc_method_wants_the_token(running, ports, training):
    """Of GCS, raylet, agents, Ray client, and every worker: of each port that speaks gRPC."""
    methods, (_, token) = rpcs(), secrets(running)
    assert len(methods) > 140
    numbers = sorted({port.number for port in ports})
    with ThreadPoolExecutor(16) as pool:
        answers = pool.map(lambda number: grpc_answers(number, methods + OPEN_RPCS), numbers)
    found = {number: answer for number, answer in zip(numbers, answers, strict=True) if answer}
    for number, answer in found.items():
        for method in OPEN_RPCS:
            answer.pop(method)
        assert set(answer.values()) == {"UNAUTHENTICATED", "UNIMPLEMENTED"}, (number, answer)
    checked = {
        method for answer in found.values() for method, code in answer.items() if code != "UNIMPLEMENTED"
    }
    services = ["NodeInfoGcs", "InternalKVGcs", "NodeManager", "ObjectManager", "Reporter"]
    for service in services + ["CoreWorker"] * (training > 0):
        assert [method for method in checked if f".{service}Service/" in method], service
    assert "/ray.rpc.RayletDriver/Init" in checked  # of the Ray client's server
    alive = "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo"
    port = running.stack().ray_port
    assert grpc_answers(port, [alive], token[::-1]) == {alive: "UNAUTHENTICATED"}
    assert grpc_answers(port, [alive], token)[alive] == "OK"
    assert _unlocked(ports, set(found)) == {
        "metrics": 3,  # of Ray's node, dashboard and autoscaler, for Prometheus
        # Torch's rendezvous, and the gradients' exchange: it knows no password.
        "training": training + (training > 0),
    }


def _unlocked(ports: list[Port], of_grpc: set[int]) -> dict[str, int]:
    """How many of the other ports answer without credentials, by what they are."""
    counts = {"metrics": 0, "training": 0}
    for port in ports:
        if port.number in of_grpc:
            continue
        if "RayTrainWorker" in port.owner:
            counts["training"] += 1
        elif "worker start" in port.owner:
            # Prefect's channel to its flow runs: one number a run, and then not a word.
            with socket.create_connection(("127.0.0.1", port.number)) as channel:
                channel.sendall(b"\0" * 200)
                assert channel.recv(1) == b""
        elif http(f"http://127.0.0.1:{port.number}/metrics") == 200:
            if "prefect" not in port.owner:
                counts["metrics"] += 1
    return counts


def test_secrets_are_for_their_owner_only(running, ports):
    folder = running.folder / "soe" / "stack"
    for path in (folder, folder / "logs", folder / "prefect"):
        assert path.stat().st_mode & 0o777 == 0o700, path
    kept = [folder / "prefect-password", folder / "ray-token", running.folder / "prefect" / "profiles.toml"]
    for path in kept:
        assert path.stat().st_mode & 0o777 == 0o600, path
    password, token = secrets(running)
    assert not [line for line in _commands(running) if password in line or token in line]
    wanted = [password.partition(":")[2].encode(), token.encode()]
    files = [path for path in (running.folder / "soe").rglob("*") if path.is_file() and path not in kept]
    assert len(files) > 50 and any(path.name == "prefect.db" for path in files)
    told = [path for path in files if any(secret in _bytes(path) for secret in wanted)]
    assert not told


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:  # in the meantime
        return b""
