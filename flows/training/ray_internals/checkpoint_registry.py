"""Ray Train's list of a run's checkpoints, mended before Ray reads it.

Ray writes ``checkpoint_manager_snapshot.json`` in place, so a crash at that moment leaves half a list. Ray also refuses
a list that names a missing folder, or that another version of Ray wrote. Either would end the run at its next start.
Each checkpoint says itself whether it is whole, so we make the list anew from them.
"""

from __future__ import annotations

from pathlib import Path

import ray
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import (
    _CheckpointManagerState,
    _TrainingResultState,
)

from flows.training.ray_internals.registered import SNAPSHOT, STEP, step_and_attempt
from soe_model.training.checkpoint_files import is_whole
from storage_schema.json_files import read_object
from storage_schema.manifest import write_atomically


def mend(run: Path) -> str | None:
    """Write the list of the run's whole checkpoints if Ray could not start from the one that is there.

    Returns what was wrong, or None if nothing was.
    """
    problem = _problem(run)
    if problem is None:
        return None
    whole = [name for name in _folders(run) if is_whole(run / name)]
    results = [
        _TrainingResultState(checkpoint_dir_name=name, metrics={"step": step_and_attempt(name)[0]})
        for name in whole
    ]
    state = _CheckpointManagerState(
        checkpoint_results=results,
        checkpoint_report_indices=list(range(len(whole))),
        latest_checkpoint_result=results[-1] if results else None,
        pending_training_results=[],
        pending_validation_specs=[],
        current_report_index=len(whole),
        validated_checkpoint_dir_names=[],
        timed_out_validation_checkpoint_dir_names=[],
        failed_validation_checkpoint_dir_names=[],
    )
    write_atomically(run / SNAPSHOT, state.json())
    return f"{run / SNAPSHOT} {problem}; it was made anew from the whole checkpoints: {', '.join(whole) or 'none'}."


def _problem(run: Path) -> str | None:
    try:
        state = read_object(run / SNAPSHOT)
        version, names = state["ray_version"], [r["checkpoint_dir_name"] for r in state["checkpoint_results"]]
        names = [str(name) for name in names]
    except FileNotFoundError:
        return None  # a run that has no checkpoint yet
    except (ValueError, KeyError, TypeError) as error:
        return f"was cut off while it was written ({type(error).__name__})"
    foreign = [name for name in names if not STEP.fullmatch(name)]
    if foreign:
        return f"names what is no checkpoint of this run ({foreign[0][:80]!r})"
    gone = [name for name in names if not (run / name).exists()]
    if gone:
        return f"names checkpoints that are gone ({', '.join(gone)})"
    return None if version == ray.__version__ else f"was written by Ray {version}"


def _folders(run: Path) -> list[str]:
    """Names of the checkpoints' folders, the oldest first."""
    names = [path.name for path in run.iterdir() if path.is_dir() and STEP.fullmatch(path.name)]
    return sorted(names, key=step_and_attempt)
