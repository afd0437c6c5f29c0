"""A flow run prints to its worker, and must go on when the worker is gone."""

from __future__ import annotations

import logging
import os
import sys
from functools import partial

from rich.console import Console

LOGGERS = ("", "prefect", "prefect.flow_runs")
"""They write to the console: the first by Prefect's own settings, the others perhaps by a user's."""


def survive_without_reader() -> None:
    """Once nobody reads the console, drop Prefect's log. Without this, rich ends the process."""
    for name in LOGGERS:
        for handler in logging.getLogger(name).handlers:
            console = getattr(handler, "console", None)
            if isinstance(console, Console):
                console.on_broken_pipe = partial(_print_nowhere, console)  # type: ignore[method-assign]


def _print_nowhere(console: Console) -> None:
    console.quiet = True
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
