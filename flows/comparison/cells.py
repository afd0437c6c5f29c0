"""The cells of a comparison, each a method with one seed: trained and measured in Ray tasks, side by side.

A cell that is finished is skipped. One that diverges is finished too, and says so; one that fails is tried again by the
next run, and the others go on.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
import torch

from flows.comparison.contenders import Contender
from flows.comparison.measuring import FINISHED, measured
from flows.comparison.place import RESULT, Place, finished
from flows.comparison.pretrainings import Pretraining
from flows.comparison.training import Training
from flows.errors import user_error
from flows.reporting.progress import progress
from pipeline.cores import available_cores, compute_on
from pipeline.tasks import cancel
from soe_model.training.step import NonFiniteLoss
from storage_schema.json_files import read_object
from storage_schema.manifest import write_atomically
from storage_schema.stage import Stage

DIVERGED, FAILED = "diverged", "failed"


def run_cells(
    place: Place, all_of_them: Sequence[Pretraining], seconds: dict[str, float]
) -> list[dict[str, Any]]:
    """Train and measure what is not finished, the longest first; the results of all cells.

    Args:
        seconds: how long each pretraining is expected to take, by its name.
    """
    results: dict[str, list[dict[str, Any]]] = {}
    for one in all_of_them:
        if (there := finished(place, one)) is not None:
            results[one.name] = there
    waiting = [one for one in all_of_them if one.name not in results]
    waiting.sort(key=lambda one: -seconds.get(one.name, 0.0))
    total, done_before = (
        sum(one.steps for one in waiting),
        {one.name: place.steps_done(one) for one in waiting},
    )
    skipped = len(results) + sum(done_before[one.name] == one.steps for one in waiting)
    if skipped:
        print(f"{skipped} of {len(all_of_them)} trainings are finished, and skipped.", flush=True)
    task = ray.remote(train_and_measure).options(num_cpus=place.cores, max_retries=0)
    running: dict[ray.ObjectRef, Pretraining] = {}
    (place.folder / "progress").mkdir(exist_ok=True)
    try:
        with progress("train the methods", "steps") as report:
            left = list(waiting)
            while left or running:
                while left and len(running) < side_by_side(place.cores):
                    one = left.pop(0)
                    running[task.remote(place, one)] = one
                for reference in ray.wait(list(running), timeout=1.0)[0]:
                    one = running.pop(reference)
                    results[one.name] = _result(reference, one)
                done = sum(
                    one.steps if one.name in results else max(done_before[one.name], _steps_told(place, one))
                    for one in waiting
                )
                report(done, total, f"{len(results)} of {len(all_of_them)} trainings finished")
    except BaseException:
        cancel(list(running))
        raise
    shutil.rmtree(place.folder / "progress")
    return [cell for one in all_of_them for cell in results[one.name]]


def side_by_side(cores: int) -> int:
    """How many cells run at once: as many as the machine's cores carry, or the cluster's CPUs."""
    machines = sum(1 for node in ray.nodes() if node["Alive"])
    there = available_cores() if machines == 1 else int(ray.cluster_resources().get("CPU", 1))
    return max(1, there // cores)


def _result(reference: ray.ObjectRef, one: Pretraining) -> list[dict[str, Any]]:
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:  # its process is gone
        said = " ".join(str(error).split())[:300]
        return [_unfinished(one, contender, FAILED, said) for contender in one.contenders]


def _unfinished(one: Pretraining, contender: Contender, status: str, said: str) -> dict[str, Any]:
    print(f"{contender.label}, seed {one.seed}: {status}: {said}", flush=True)
    return {"method": contender.label, "seed": one.seed, "status": status, "said": said}


def _steps_told(place: Place, one: Pretraining) -> int:
    try:
        return int(place.told(one).read_text("ascii"))
    except (OSError, ValueError):
        return 0


def train_and_measure(place: Place, pretraining: Pretraining) -> list[dict[str, Any]]:
    """One task: the runs that some cells share, then each of the cells. Never raises; a result says what went wrong."""
    compute_on(place.cores)
    try:
        stage = place.training(pretraining)
        training = Training(
            pretraining=pretraining,
            folder=stage.work if stage.finished is None else stage.folder,
            store=place.store(),
            points=place.points,
            domain_weights_RK=torch.stack([one.weights_K for one in place.sets]),
            checkpoint_seconds=place.checkpoint_seconds,
        )
        if stage.finished is None:
            training.to_the_end(stage.scratch, _Teller(place.told(pretraining)))
            stage.finish({"steps": pretraining.steps})
            training = Training(**{**training.__dict__, "folder": stage.folder})
    except NonFiniteLoss as error:
        return [_diverged(place, pretraining, contender, str(error)) for contender in pretraining.contenders]
    except Exception as error:
        return [failed(pretraining, contender, error) for contender in pretraining.contenders]
    results = []
    for contender in pretraining.contenders:
        try:
            results.append(_cell(place, training, contender))
        except NonFiniteLoss as error:
            results.append(_diverged(place, pretraining, contender, str(error)))
        except Exception as error:
            results.append(failed(pretraining, contender, error))
    return results


def failed(pretraining: Pretraining, contender: Contender, error: Exception) -> dict[str, Any]:
    """The cell of a method that could not be trained or measured, which says why."""
    said = user_error(error)
    if said is None:  # a fault of ours: its traceback belongs into the log
        import traceback

        traceback.print_exception(error)
        said = f"{type(error).__name__}: {error}"
    return _unfinished(pretraining, contender, FAILED, said)


def _diverged(place: Place, pretraining: Pretraining, contender: Contender, said: str) -> dict[str, Any]:
    result = _unfinished(pretraining, contender, DIVERGED, said)
    return _write(place.cell(pretraining, contender), result)


def _write(stage: Stage, result: dict[str, Any]) -> dict[str, Any]:
    write_atomically(stage.work / RESULT, json.dumps(result, indent=1, allow_nan=False))
    stage.finish({"status": result["status"]})
    return result


def _cell(place: Place, training: Training, contender: Contender) -> dict[str, Any]:
    """Measure a method and write its cell, unless it is there; then what is asked of it besides."""
    stage = place.cell(training.pretraining, contender)
    if stage.finished is None:
        tokens = place.tuned_on(contender)
        _write(
            stage,
            measured(training, contender, place.sets, fine_tune_tokens=tokens, scratch=stage.scratch),
        )
    result = read_object(stage.folder / RESULT)
    return result | place.further.measured(training, contender) if result["status"] == FINISHED else result


class _Teller:
    """Writes how many steps are done, at most once per second."""

    def __init__(self, file: Path):
        self.file, self.next = file, 0.0

    def __call__(self, steps: int) -> None:
        if time.monotonic() >= self.next:
            write_atomically(self.file, str(steps))
            self.next = time.monotonic() + 1.0
