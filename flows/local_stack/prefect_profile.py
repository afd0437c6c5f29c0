"""The Prefect profile ``soe``: what makes ``prefect deployment run build-domains`` reach the local stack.

The profiles file is Prefect's own (``$PREFECT_HOME/profiles.toml``). It then holds the stack's password, so
its mode becomes 0600. What was there before is remembered and put back when the stack goes down.
"""

from __future__ import annotations

import fcntl
import os
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import toml

from flows.local_stack.state import StackError
from storage_schema.manifest import write_atomically

NAME = "soe"
PLUGIN = "soup-of-experts"
"""The name of our entry point in the group ``prefect.plugins``."""


def path() -> Path:
    """The profiles file that the ``prefect`` command reads here."""
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    return Path(os.environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml").expanduser().absolute()


def settings(api_url: str, auth_string: str) -> dict[str, str]:
    """What the profile holds."""
    return {
        "PREFECT_API_URL": api_url,
        "PREFECT_API_AUTH_STRING": auth_string,
        "PREFECT_PLUGINS_ENABLED": "true",
        "PREFECT_PLUGINS_ALLOW": PLUGIN,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }


def activate(wanted: dict[str, str]) -> dict[str, Any]:
    """Write the profile and make it the active one.

    Returns what :func:`restore` needs: the file, the profile that was active (None for Prefect's default) and
    the settings that a profile of the same name had (None if there was none).
    """
    file = path()
    with _lock(file):
        body = _read(file)
        before = {"file": str(file), "active": body.get("active"), "settings": body["profiles"].get(NAME)}
        body["active"] = NAME
        body["profiles"][NAME] = wanted
        _write(file, body)
    return before


def is_active(api_url: str) -> bool:
    """Whether plain ``prefect`` commands reach this API by way of our profile."""
    body = _read(path())
    return body.get("active") == NAME and body["profiles"].get(NAME, {}).get("PREFECT_API_URL") == api_url


def restore(before: dict[str, Any], api_url: str) -> None:
    """Undo :func:`activate`, unless the profile has come to point at another server since."""
    file = Path(before["file"])
    if not file.exists():
        return
    with _lock(file):
        body = _read(file)
        if body["profiles"].get(NAME, {}).get("PREFECT_API_URL") != api_url:
            return
        if before["settings"] is None:
            del body["profiles"][NAME]
        else:
            body["profiles"][NAME] = before["settings"]
        if body.get("active") == NAME:
            body["active"] = before["active"]
        if body["profiles"] or body.get("active"):
            _write(file, body)
        else:
            file.unlink()


@contextmanager
def _lock(file: Path) -> Iterator[None]:
    """One stack at a time changes the profiles; what is locked is their folder, so that no file is left."""
    file.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _read(file: Path) -> dict[str, Any]:
    try:
        body = tomllib.loads(file.read_text("utf-8")) if file.exists() else {}
    except ValueError as error:
        raise StackError(f"{file} is not TOML ({error}): mend it, or move it away.") from error
    body.setdefault("profiles", {})
    return body


def _write(file: Path, body: dict[str, Any]) -> None:
    if body.get("active") is None:
        body.pop("active", None)
    before = os.umask(0o077)
    try:
        write_atomically(file, toml.dumps(body))
    finally:
        os.umask(before)
