"""``soe up --metrics``: a Prometheus on the loopback interface that scrapes the Ray cluster and asks for a password.

$SOE_HOME/stack/metrics/     mode 0700
    password                 of the user ``soe``, mode 0600
    prometheus.yml           what is scraped: the nodes that Ray lists
    web.yml                  the password's hash
    data/                    the series, kept for 30 days
    compose.env, grafana/    for the Grafana of flows/local_stack/metrics/compose.yaml
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
from pathlib import Path

import bcrypt

from flows.http_client import http_client
from flows.local_stack import state as stack_state
from flows.local_stack.state import Stack, StackError

USER = "soe"
SCRAPE_SECONDS = 5
TARGETS = "prom_metrics_service_discovery.json"
"""In this file in its folder Ray lists the metric ports of its nodes."""


def folder() -> Path:
    """The folder with Prometheus' configuration, password and data."""
    return stack_state.folder() / "metrics"


def password_file() -> Path:
    """The file with the password of Prometheus' only user, ``soe``."""
    return folder() / "password"


def program() -> str:
    """Prometheus: ``SOE_PROMETHEUS``, or the one on the path. Raises :class:`StackError` without one."""
    found = shutil.which(os.environ.get("SOE_PROMETHEUS") or "prometheus")
    if found is None:
        raise StackError(
            "there is no prometheus on the path: install it (Debian's package `prometheus`; the service that it "
            "starts is not needed), or give its path in SOE_PROMETHEUS."
        )
    return found


def command(stack: Stack) -> list[str]:
    """The command line that starts it."""
    options = {
        "config.file": folder() / "prometheus.yml",
        "web.config.file": folder() / "web.yml",
        "web.listen-address": f"127.0.0.1:{stack.metrics_port}",
        "storage.tsdb.path": folder() / "data",
        "storage.tsdb.retention.time": "30d",
        "log.level": "warn",
    }
    return [program(), *(f"--{name}={value}" for name, value in options.items())]


def prepare(stack: Stack) -> None:
    """Write the configuration and, once, the password (0600)."""
    for path in (folder(), folder() / "grafana"):
        path.mkdir(mode=0o700, exist_ok=True)
    if not password_file().exists():
        _write(password_file(), secrets.token_hex(24))
    password = password_file().read_text().strip().encode()
    _write(
        folder() / "web.yml",
        json.dumps({"basic_auth_users": {USER: bcrypt.hashpw(password, bcrypt.gensalt(10)).decode()}}),
    )
    # Prometheus reads this file again and again: Ray makes a new folder at each start, and has made none yet.
    nodes = {"files": [str(stack_state.ray_folder() / TARGETS)], "refresh_interval": f"{SCRAPE_SECONDS}s"}
    job = {"job_name": "ray", "file_sd_configs": [nodes]}
    interval = {"scrape_interval": f"{SCRAPE_SECONDS}s", "scrape_timeout": f"{SCRAPE_SECONDS}s"}
    _write(folder() / "prometheus.yml", json.dumps({"global": interval, "scrape_configs": [job]}, indent=1))
    variables = {
        "SOE_USER": f"{os.getuid()}:{os.getgid()}",
        "SOE_METRICS_PORT": stack.metrics_port,
        "SOE_METRICS_FOLDER": folder(),
    }
    _write(folder() / "compose.env", "".join(f"{name}={value}\n" for name, value in variables.items()))


def authorization() -> str:
    """The value of the HTTP header ``Authorization``."""
    pair = f"{USER}:{password_file().read_text().strip()}"
    return "Basic " + base64.b64encode(pair.encode()).decode()


def for_ray(stack: Stack) -> dict[str, str]:
    """Environment variables by which Ray's dashboard finds the series, for its Metrics page."""
    if stack.metrics_port is None:
        return {}
    headers = json.dumps({"Authorization": authorization()})
    return {"RAY_PROMETHEUS_HOST": stack.metrics_url, "RAY_PROMETHEUS_HEADERS": headers}


def answers(stack: Stack) -> bool:
    """Whether it is ready and takes our password."""
    import httpx

    try:
        answer = http_client().get(
            f"{stack.metrics_url}/-/ready", headers={"Authorization": authorization()}, timeout=5.0
        )
    except httpx.HTTPError:
        return False
    return answer.status_code == 200


def _write(path: Path, text: str) -> None:
    """Write a file that only its owner can read. JSON is YAML too."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
