"""Measures where the time of a step goes."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from itertools import pairwise
from typing import Any

import torch

MOST_MARKS = 10_000
"""The most marks that are kept between two readings; if nobody reads the clock, it drops the oldest."""


class StepClock:
    """Counts the seconds of each part of a step.

    A GPU works later than it is asked to. There the marks are events in its stream, and nothing waits for them until
    the clock is read.
    """

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self._marks: deque = deque(maxlen=MOST_MARKS)

    def begin(self) -> None:
        """Mark the beginning of a step; the time before it belongs to no part."""
        self._marks.append((None, self._now()))

    def end_of(self, part: str) -> None:
        """Mark the end of the part that began at the last mark."""
        self._marks.append((part, self._now()))

    def read(self) -> dict[str, float]:
        """Seconds of each part since the last reading, summed over the steps."""
        seconds: dict[str, float] = defaultdict(float)
        if self._marks and self._on_gpu:
            self._marks[-1][1].synchronize()
        for (_, begun), (part, ended) in pairwise(self._marks):
            if part is not None:
                seconds[part] += begun.elapsed_time(ended) / 1000 if self._on_gpu else ended - begun
        self._marks.clear()
        return dict(seconds)

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
