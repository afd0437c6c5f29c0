"""What a flow run prints goes to its worker, and a run must outlive its worker."""

from __future__ import annotations

import logging
import os
import sys
from functools import partial

from rich.console import Console

LOGGERS = ("", "prefect", "prefect.flow_runs")
"""Those that write to the console: Prefect's settings give that to the first, a user's own may give it to others."""


def survive_without_reader() -> None:
    """From now on Prefect's log goes nowhere once nobody reads the console; rich would end the process instead."""
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
