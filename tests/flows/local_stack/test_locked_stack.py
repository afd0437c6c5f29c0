"""A running stack against strangers: other users, web pages. Its ports are in test_locked_ports.py.

What stands open on the loopback interface is listed here, door by door (OPEN_PAGES, OPEN_HEALTH).
"""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flows.local_stack import processes
from flows.prefect_client.api import ApiError, PrefectApi
from tests.flows.doors import http, routes
from tests.flows.local_stack.looked_at import command_lines, listeners, logs, members, secrets

OPEN_PAGES = {"/", "/favicon.ico", "/static", "/api/authentication_mode"}
"""Of Ray's dashboard: what the page that asks for the token is made of."""
OPEN_HEALTH = {"/api/healthz", "/api/gcs_healthz", "/api/local_raylet_healthz"}
JOB = json.dumps({"entrypoint": "true"}).encode()


def _variables(pid: int) -> list[str]:
    """As the kernel shows them: psutil ends at the first gap."""
    try:
        return Path(f"/proc/{pid}/environ").read_text("utf-8", "replace").split("\0")
    except OSError:  # it has ended
        return [""]


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
    [option] = re.findall(r"--listen-port=(\d+)", " ".join(command_lines(running)))[:1]
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
    [client] = re.findall(r"-m ray.util.client.server .*?--port=(\d+)", " ".join(command_lines(running)))[:1]
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
