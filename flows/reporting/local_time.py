"""One rule for times: files hold UTC, and people read their own time with its offset."""

from __future__ import annotations

from datetime import datetime


def local_time(moment: str | float) -> str:
    """A moment for a person: ``2026-03-01 14:05:09+01:00``.

    Args:
        moment: ISO 8601 with an offset or ``Z``, as Prefect writes it, or seconds since 1970.
    """
    when = datetime.fromisoformat(moment) if isinstance(moment, str) else datetime.fromtimestamp(moment)
    return when.astimezone().isoformat(" ", "seconds")
