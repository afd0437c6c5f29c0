"""The log of a run in its own folder, which can be read without any server.

log.jsonl       one line of JSON every few steps
tensorboard/    the same numbers as TensorBoard events: tensorboard --logdir SOE_HOME/runs
"""

from __future__ import annotations

import json
from pathlib import Path

from storage_schema.manifest import write_atomically

LOG, EVENTS = "log.jsonl", "tensorboard"


class RunLog:
    """The log of the run in `folder`, continued after `step`.

    What an earlier attempt logged after that step is dropped, because those steps come again.
    """

    def __init__(self, folder: Path, *, step: int):
        from tensorboardX import SummaryWriter  # imports torch, which who only reads a log does not need

        self._path = folder / LOG
        _cut(self._path, step)
        self._events = SummaryWriter(
            str(folder / EVENTS), purge_step=step + 1, flush_secs=10, filename_suffix=f".from-{step}"
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        """Log the state after `step` steps."""
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is not yet written of the events."""
        self._events.close()


def read_log(folder: Path, *, last: int | None = None) -> list[dict[str, float]]:
    """The lines of a run's log, in the order of the steps; none if the run has not begun.

    Args:
        last: only so many, from the end.
    """
    try:
        lines = (folder / LOG).read_text("utf-8").splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for line in lines[-last:] if last else lines:
        try:
            rows.append(json.loads(line))
        except ValueError:  # a line that is being written
            break
    return rows


def _cut(path: Path, step: int) -> None:
    kept = [row for row in read_log(path.parent) if row["step"] <= step]
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept))
