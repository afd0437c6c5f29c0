"""The Prefect profile ``soe``: what makes ``prefect deployment run build-domains`` reach the local stack.

The profiles file is Prefect's own (``$PREFECT_HOME/profiles.toml``). It then holds the stack's password, so
its mode becomes 0600. What was there before is remembered and put back when the stack goes down.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tomlkit

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


def activate(wanted: dict[str, str], remember: Callable[[dict[str, Any]], None]) -> None:
    """Write the profile and make it the active one.

    Args:
        remember: called before anything is written, with what :func:`restore` needs: the file, the profile that was
            active (None for Prefect's default) and the settings of a profile of the same name (None if there was
            none). Whatever it keeps survives a crash that happens later.
    """
    file = path()
    with _lock(file):
        body = _read(file)
        there = body.unwrap()
        settings = there.get("profiles", {}).get(NAME)
        remember({"file": str(file), "active": there.get("active"), "settings": settings})
        _write(file, body, active=NAME, settings=wanted)


def is_active(api_url: str) -> bool:
    """Whether plain ``prefect`` commands reach this API by way of our profile."""
    body = _read(path())
    return body.get("active") == NAME and _url(body) == api_url


def restore(before: dict[str, Any], api_url: str) -> None:
    """Undo :func:`activate`, unless the profile has come to point at another server since."""
    file = Path(before["file"])
    if not file.exists():
        return
    with _lock(file):
        body = _read(file)
        if _url(body) != api_url:
            return
        active = before["active"] if body.get("active") == NAME else body.get("active")
        _write(file, body, active=active, settings=before["settings"])


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


def _read(file: Path) -> tomlkit.TOMLDocument:
    try:
        return tomlkit.parse(file.read_text("utf-8") if file.exists() else "")
    except ValueError as error:
        raise StackError(f"{file} is not TOML ({error}): mend it, or move it away.") from error


def _url(body: tomlkit.TOMLDocument) -> str | None:
    """The server that our profile points at; None if the profile is not there."""
    return body.get("profiles", {}).get(NAME, {}).get("PREFECT_API_URL")


def _write(
    file: Path, body: tomlkit.TOMLDocument, *, active: str | None, settings: dict[str, str] | None
) -> None:
    """Change which profile is active and what ours holds; the user's comments and order stay as they are.

    A file that is then empty is deleted.
    """
    if active is None:
        body.pop("active", None)
    elif "active" in body:
        body["active"] = active
    else:  # tomlkit would add the key between the first profile and the comment above it
        body = tomlkit.parse(f"active = {json.dumps(active)}\n\n{body.as_string()}")
    profiles = body.setdefault("profiles", tomlkit.table(is_super_table=True))
    if settings is None:
        profiles.pop(NAME, None)
    elif NAME in profiles:
        for name in profiles[NAME].keys() - settings.keys():
            del profiles[NAME][name]
        profiles[NAME].update(settings)
    else:
        profiles[NAME] = settings
    text = body.as_string().strip("\n")
    if not text:
        file.unlink(missing_ok=True)
        return
    before = os.umask(0o077)
    try:
        write_atomically(file, text + "\n")
    finally:
        os.umask(before)
