"""Makes ``prefect deployment run build-domains`` mean ``prefect deployment run build-domains/build-domains``.

Prefect asks for FLOW/DEPLOYMENT; each of our deployments has its flow's name. When Prefect is imported, it runs this
plug-in's hook before it reads the command line, if the profile enables plug-ins (``PREFECT_PLUGINS_ENABLED``, which
``soe up`` sets in its own profile). The hook changes nothing else on the command line. It also turns Prefect's usage
events off (``DO_NOT_TRACK``), unless the variable is set already.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from prefect.plugins import register_hook

_GLOBAL_WITH_VALUE = {"--profile", "-p"}
_GLOBAL_FLAGS = {"--prompt", "--no-prompt"}
_RUN_WITH_VALUE = {
    "--profile",
    "--job-variable",
    "-jv",
    "--param",
    "-p",
    "--params",
    "--start-in",
    "--start-at",
    "--tag",
    "--watch-interval",
    "--watch-timeout",
    "--flow-run-name",
}
_RUN_FLAGS = {"--prompt", "--no-prompt", "--watch", "--no-watch"}


@register_hook
def setup_environment(*, ctx: Any) -> None:
    """Prefect calls this once, before it reads its command line."""
    os.environ.setdefault("DO_NOT_TRACK", "1")
    sys.argv[:] = complete(sys.argv)


def complete(argv: list[str]) -> list[str]:
    """Replace the bare NAME of ``prefect [flags] deployment run NAME`` by NAME/NAME.

    Any other command line comes back unchanged; so does one with ``--id``, or with an unknown option before the name.
    """
    if not argv or not _is_prefect(argv[0]):
        return argv
    at = _skip(argv, 1, _GLOBAL_WITH_VALUE, _GLOBAL_FLAGS)
    if argv[at : at + 1] not in (["deployment"], ["deployments"]) or argv[at + 1 : at + 2] != ["run"]:
        return argv
    at = _skip(argv, at + 2, _RUN_WITH_VALUE, _RUN_FLAGS)
    if at >= len(argv) or argv[at].startswith("-") or "/" in argv[at] or not argv[at]:
        return argv
    if any(word == "--id" or word.startswith("--id=") for word in argv[at + 1 :]):
        return argv
    return [*argv[:at], f"{argv[at]}/{argv[at]}", *argv[at + 1 :]]


def _is_prefect(program: str) -> bool:
    """Whether argv[0] is the command, or ``python -m prefect`` (``-m`` while the package is imported)."""
    path = Path(program)
    return path.name == "prefect" or program == "-m" or path.parts[-2:] == ("prefect", "__main__.py")


def _skip(argv: list[str], at: int, with_value: set[str], flags: set[str]) -> int:
    """The position of the first word that is neither one of these options nor an option's value."""
    while at < len(argv) and argv[at].startswith("-"):
        name = argv[at].partition("=")[0]
        if argv[at] in flags:
            at += 1
        elif name in with_value:
            at += 1 if "=" in argv[at] else 2
        else:
            break
    return at
