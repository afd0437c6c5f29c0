"""How a stage grows: slopes on a log-log scale, and seconds = a * bytes + b * files + c.

The bytes are those that the stage's work grows with (extrapolation.py): the arithmetic on them (word runs, distances to
the centroids, merges of word pieces) is the same for each, so FLOPs are no term of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import nnls


@dataclass(frozen=True, kw_only=True)
class Point:
    """One measurement of one stage."""

    bytes: float
    files: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class StageModel:
    """The seconds of a stage for a corpus of so many bytes in so many files."""

    per_byte: float
    per_file: float
    constant: float
    held_out_error: float | None = None
    """At the largest measured point, of a model that was fitted to the others alone: predicted over measured, minus
    1."""

    def seconds(self, bytes: float, files: float) -> float:
        return self.per_byte * bytes + self.per_file * files + self.constant


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of log(value) over log(size): 1 is linear, 2 grows with the square."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def fit_stage(points: Sequence[Point]) -> StageModel:
    """Fit a model to all points, and say how far off one that is fitted to the others is at the largest.

    No coefficient is negative. Relative errors count alike. Points of which one could not tell bytes from files (all
    have about the same bytes per file) give no coefficient to files.
    """
    *used, largest = sorted(points, key=lambda point: (point.bytes, point.seconds))
    error = _fit(used).seconds(largest.bytes, largest.files) / largest.seconds - 1
    return replace(_fit([*used, largest]), held_out_error=error)


def _fit(points: Sequence[Point]) -> StageModel:
    ratios = [point.bytes / point.files for point in points]
    by_file = float(max(ratios) > 2 * min(ratios))
    rows = np.array([[point.bytes, by_file * point.files, 1.0] for point in points])
    weights = 1 / np.array([point.seconds for point in points])
    scales = np.maximum(rows.max(0), 1)  # bytes are many, and one is few
    found, _ = nnls(rows / scales * weights[:, None], np.ones(len(points)))
    per_byte, per_file, constant = (found / scales).tolist()
    return StageModel(per_byte=per_byte, per_file=per_file, constant=constant)
