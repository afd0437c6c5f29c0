"""How commands and jobs report an error: one line if the user can mend it, a traceback if it is a fault."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterator

from storage_schema.errors import UserError

PREFIX = "error: "


def in_one_line(run: Callable[[], int]) -> int:
    """Run, and return the exit code: that of `run`, or 1 after one line on stderr for an error that the user can mend.

    Any other error is raised.
    """
    try:
        return run()
    except Exception as error:
        message = user_error(error)
        if message is None:
            raise
        print(f"{PREFIX}{message}", file=sys.stderr)
        return 1


def user_error(error: BaseException) -> str | None:
    """One line for an error that the user can mend, wherever in the cluster it was raised; None for a fault."""
    from pydantic import ValidationError  # late, so that commands start at once

    for raised in causes(error):
        if isinstance(raised, ValidationError):
            first = raised.errors()[0]
            where = ".".join(map(str, first["loc"])) or "config"
            return f"{where}: {first['msg'].removeprefix('Value error, ')} (got {first['input']!r})"
        if isinstance(raised, OSError) and raised.errno == errno.ENOSPC:
            place = raised.filename or "SOE_HOME"
            return f"no space left on the disk of {place}. Free some and run the same command; it resumes."
        if isinstance(raised, IsADirectoryError) and raised.filename:
            folder = raised.filename2 or raised.filename  # of a rename the place that it goes to
            return f"{folder} is a folder, where a file is needed. Give the path of a file."
        if isinstance(raised, PermissionError | NotADirectoryError) and raised.filename:
            return f"{raised.filename}: {raised.strerror}. Choose another place, or make this one writable."
        # Ray's wrapper (it has a `cause`) is an instance of its cause's class too, but its text is a traceback.
        if isinstance(raised, UserError) and not hasattr(raised, "cause"):
            return " ".join(str(raised).split())
    return None


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and those that Ray and Ray Train wrapped in it."""
    yield error
    inside = getattr(error, "cause", None), getattr(error, "health_check_failure", None)
    for inner in [*inside, *getattr(error, "worker_failures", {}).values()]:
        if isinstance(inner, BaseException):
            yield from causes(inner)
