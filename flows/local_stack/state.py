"""The state of a local stack: its folder, ports, processes and secrets, and the environment of each component.

$SOE_HOME/stack/             mode 0700
    state.json               this file's :class:`Stack`
    prefect-password         user:password of the Prefect server, mode 0600
    ray-token                the Ray cluster's token, mode 0600
    logs/                    one file per component
    prefect/                 PREFECT_HOME of server and worker; the database
    ray/                     Ray's session (under the temporary folder where this path would be too long)
    ray-logs.1/              the logs of the session before, beside ray/
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flows.local_stack.heartbeat_automation import HEARTBEAT_SECONDS
from flows.local_stack.processes import MARK, Process, free_port
from flows.prefect_client.api import PrefectApi
from storage_schema import layout
from storage_schema.errors import UserError
from storage_schema.json_files import read_object
from storage_schema.manifest import write_atomically

COMPONENTS = ("prefect-server", "ray-head", "prefect-worker")
PROMETHEUS = "prometheus"
"""A component of stacks that were started with ``--metrics`` (flows/local_stack/prometheus.py)."""
Report = Callable[[str, str], None]
"""``report(component, state)``: ``starting`` or ``waiting``, ``ready``; ``stopping``, ``stopped``."""
LONGEST_RAY_FOLDER = 40
"""Characters. A Unix socket's path has at most 107, and Ray adds up to 65 to its folder's."""


class StackError(UserError):
    """The stack cannot be started or reached; the message says what to do."""


@dataclass(kw_only=True)
class Stack:
    """A stack that runs, has run, or is about to start."""

    id: str = field(default_factory=lambda: secrets.token_hex(8))
    prefect_port: int
    dashboard_port: int
    ray_port: int
    metrics_port: int | None = None
    """Prometheus' port; None without Prometheus."""
    processes: dict[str, Process] = field(default_factory=dict)
    profile_before: dict[str, Any] | None = None
    """What :func:`flows.local_stack.prefect_profile.restore` needs; None while the profile is not ours."""

    @property
    def api(self) -> PrefectApi:
        return PrefectApi(url=f"{self.prefect_url}/api", auth_string=password_file().read_text().strip())

    @property
    def prefect_url(self) -> str:
        return f"http://127.0.0.1:{self.prefect_port}"

    @property
    def dashboard_url(self) -> str:
        return f"http://127.0.0.1:{self.dashboard_port}"

    @property
    def metrics_url(self) -> str:
        return f"http://127.0.0.1:{self.metrics_port}"

    @property
    def components(self) -> tuple[str, ...]:
        """The names of this stack's components."""
        return COMPONENTS if self.metrics_port is None else (*COMPONENTS, PROMETHEUS)

    @property
    def of_an_earlier_boot(self) -> bool:
        """Whether the machine has restarted since the stack ran, which ended all its processes."""
        return any(not process.of_this_boot for process in self.processes.values())

    def alive(self, component: str) -> bool:
        process = self.processes.get(component)
        return process is not None and process.alive

    def mark(self, component: str = "") -> str:
        """How the mark of a component's processes begins; without a component, that of all the stack's processes."""
        return f"{self.id}:{component}"

    def save(self) -> None:
        write_atomically(_state_file(), json.dumps(asdict(self), indent=1) + "\n")


def folder() -> Path:
    """The stack's folder under ``SOE_HOME``; it may not exist yet."""
    return layout.home() / "stack"


def logs_folder() -> Path:
    """Where each component's log lies."""
    return folder() / "logs"


def password_file() -> Path:
    """The file with ``user:password`` of the Prefect server."""
    return folder() / "prefect-password"


def token_file() -> Path:
    """The file with the token of the Ray cluster."""
    return folder() / "ray-token"


def ray_folder() -> Path:
    """Where Ray keeps its session: logs, sockets, spilled objects."""
    wanted = folder() / "ray"
    if len(str(wanted)) <= LONGEST_RAY_FOLDER:
        return wanted
    name = hashlib.sha256(str(folder()).encode()).hexdigest()[:10]
    return Path(tempfile.gettempdir()) / f"soe-{os.getuid()}-{name}" / "ray"


def former_ray_logs() -> Path:
    """The logs of Ray's session before this one."""
    return ray_folder().with_name("ray-logs.1")


def load() -> Stack | None:
    """The stack of this ``SOE_HOME``, whether it runs or not; None if there never was one."""
    try:
        body = read_object(_state_file())
        processes = {name: Process(**process) for name, process in body.pop("processes").items()}
        return Stack(**body, processes=processes)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise StackError(
            f"{_state_file()} is not a stack's state ({error}): stop its processes, then delete the file."
        ) from error


def prepare_folders() -> None:
    """Make the folders (0700) and, once, the secrets (0600)."""
    layout.home().mkdir(parents=True, exist_ok=True)
    # Ray opens its own folder to everybody, so the one around it must be closed.
    for path in (folder(), logs_folder(), folder() / "prefect"):
        path.mkdir(mode=0o700, exist_ok=True)
        if path.stat().st_uid != os.getuid():
            raise StackError(f"{path} belongs to another user. Set SOE_HOME to a folder of your own.")
        path.chmod(0o700)
    if ray_folder().parent != folder():
        _take(ray_folder().parent)
    for file, value in (
        (password_file(), f"soe:{secrets.token_hex(24)}"),
        (token_file(), secrets.token_hex(32)),
    ):
        if not file.exists():
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as opened:
                opened.write(value)


def _take(path: Path) -> None:
    """Make a folder in the temporary folder that all users share. Another user can guess its name and be the first to
    make it, or to make a link there that leads into a folder of ours.
    """
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise StackError(
            f"{path} is not a folder of this user: somebody else made it. Delete it, set TMPDIR to another folder, or "
            f"SOE_HOME to one of a short name (at most {LONGEST_RAY_FOLDER} characters with /stack/ray)."
        )
    path.chmod(0o700)


def environment(stack: Stack, component: str) -> dict[str, str]:
    """The environment to start a component in: the caller's, without the variables that point elsewhere, and with those
    that the component needs. The end of the mark differs at each start.
    """
    password = password_file().read_text().strip()
    inherited = without_pointers(os.environ)
    inherited |= {
        MARK: f"{stack.mark(component)}:{secrets.token_hex(4)}",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "SOE_HOME": str(layout.home()),
        "PYTHONUNBUFFERED": "1",
        "DO_NOT_TRACK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file()),
        "RAY_API_SERVER_ADDRESS": stack.dashboard_url,  # flows/cluster/session.py says why
    }
    if component == "ray-head":
        # Ray replaces 127.0.0.1 by an outside address wherever it believes that clusters are supported;
        # this is its switch for that. With it off, all of Ray's servers listen on the loopback interface.
        ports = ("AUTOSCALER_METRIC_PORT", "DASHBOARD_METRIC_PORT")
        inherited |= {name: str(free_port()) for name in ports}
        return inherited | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    inherited |= {
        "PREFECT_HOME": str(folder() / "prefect"),
        "PREFECT_API_URL": f"{stack.prefect_url}/api",
        "PREFECT_API_AUTH_STRING": password,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # Look often, but take a run only when it is due. A run that waits for another pretraining would otherwise be
        # tried, refused and logged at each look.
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_WORKER_PREFETCH_SECONDS": "1",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
    }
    if component == "prefect-server":
        database = folder() / "prefect" / "prefect.db"
        inherited |= {
            "PREFECT_SERVER_API_AUTH_STRING": password,
            "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "15",
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{database}",
        }
    return inherited


def without_pointers(variables: Mapping[str, str]) -> dict[str, str]:
    """These variables, less those that lead Prefect and Ray to another server, profile or cluster."""
    return {name: value for name, value in variables.items() if name not in _POINTERS}


_POINTERS = {
    "PREFECT_API_URL",
    "PREFECT_API_AUTH_STRING",
    "PREFECT_API_KEY",
    "PREFECT_PROFILE",
    "PREFECT_PROFILES_PATH",
    "PREFECT_PLUGINS_ENABLED",
    "RAY_ADDRESS",
    "RAY_API_SERVER_ADDRESS",
    "RAY_AUTH_TOKEN",
    "RAY_JOB_CONFIG_JSON_ENV_VAR",
}


def _state_file() -> Path:
    return folder() / "state.json"
