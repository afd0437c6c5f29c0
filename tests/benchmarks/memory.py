"""Peak memory of all processes of a job, Ray's own included."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Self

from flows.local_stack import processes

EVERY = 0.25
"""Seconds between samples."""


class Sampler(threading.Thread):
    """The peaks of the summed memory of all processes that bear a mark in their environment, in bytes.

    *anonymous* is what the system cannot drop; *proportional* adds mapped files by their sharers.

    Args:
        mark: ``NAME=value``, as the job's environment has it; a with block begins and ends the sampling.
    """

    def __init__(self, mark: str):
        super().__init__(daemon=True)
        self.mark, self._running = mark, True
        self._peaks = {"anonymous": 0, "proportional": 0}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._running = False
        self.join()

    def take(self) -> dict[str, int]:
        """The peaks since the last call."""
        taken, self._peaks = self._peaks, dict.fromkeys(self._peaks, 0)
        return taken

    def run(self) -> None:
        while self._running:
            sums = dict.fromkeys(self._peaks, 0)
            for pid in processes.carrying(self.mark):
                try:
                    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
                except OSError:
                    continue
                fields = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines}
                sums["anonymous"] += fields["Anonymous"]
                sums["proportional"] += fields["Pss"]
            self._peaks = {name: max(peak, sums[name]) for name, peak in self._peaks.items()}
            time.sleep(EVERY)
