"""The log file of each component: its end, and its lines as they come."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from flows.local_stack import state as stack_state

POLL_SECONDS = 1.0


def log_file(component: str) -> Path:
    """The log of the component since it last started; :func:`set_aside` keeps the log of the start before."""
    return stack_state.logs_folder() / f"{component}.log"


def set_aside(component: str) -> Path:
    """Rename the log, if there is one, to ``<component>.log.1``; returns the path for a new log."""
    log = log_file(component)
    if log.exists():
        log.replace(log.with_suffix(".log.1"))
    return log


def why_it_ended(component: str) -> str:
    """For an error message: the port that another program has taken, or the log's last lines."""
    log = log_file(component)
    lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    taken = next((line.strip() for line in lines if "already in use" in line), None)
    if taken:
        return f"Another program has taken a port: {taken}. Choose ports with the options of `soe up`."
    return "\n".join([f"The end of {log}:", *(f"  {line}" for line in lines[-8:])])


def log_lines(component: str, last: int, *, follow: bool) -> Iterator[str]:
    """The `last` lines of the component's log. With `follow`, then each new line, without end: after a restart of the
    component those of its new log.

    Raises StackError if there is no log.
    """
    log = log_file(component)
    try:
        file = _open(log)
    except FileNotFoundError:
        raise stack_state.StackError(f"{log} is not there yet: `soe up` starts what writes it.") from None
    try:
        yield from (line.rstrip("\n") for line in file.readlines()[-last:])
        while follow:
            replaced = _is_replaced(file, log)  # asked first: the old file is then read to its end
            yield from (line.rstrip("\n") for line in file)
            if replaced:
                file.close()
                file = _open(log)
            else:
                time.sleep(POLL_SECONDS)
    finally:
        file.close()


def _open(log: Path) -> TextIO:
    return open(log, encoding="utf-8", errors="replace")


def _is_replaced(file: TextIO, log: Path) -> bool:
    """Whether another file now has the log's name."""
    try:
        return not os.path.samestat(os.fstat(file.fileno()), log.stat())
    except FileNotFoundError:  # the new one is still to come
        return False
