"""Mean and standard deviation over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev


def spread(found: Sequence[float | None]) -> dict[str, float | None] | None:
    """Mean and standard deviation over seeds (None for one), of those that were measured."""
    values = [value for value in found if value is not None]
    return {"mean": fmean(values), "sd": stdev(values) if len(values) > 1 else None} if values else None
