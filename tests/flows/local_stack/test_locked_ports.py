"""The ports of a running stack, from this machine and from another. In the long suite two workers train.

What stands open on the loopback interface is listed here, port by port (OPEN_RPCS, `_unlocked`).
"""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import extras
from tests.flows.conftest import WORKERS
from tests.flows.doors import grpc_answers, http, rpcs
from tests.flows.elsewhere import elsewhere
from tests.flows.local_stack.looked_at import Port, command_lines, listeners, members, secrets
from tests.flows.sockets import LOOPBACK, datagrams, peers

OPEN_RPCS = ["/grpc.health.v1.Health/Check", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"]
"""Of Ray's gRPC servers: whether they live, and the names of their services."""


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
    assert not [line for line in command_lines(running) if password in line or token in line]
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
