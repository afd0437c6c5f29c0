"""What a trained method is worth: losses at every point, the time of a specialist and of a token, and its cost."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from flows.comparison.contenders import Contender
from flows.comparison.fine_tuning import fine_tuned
from flows.comparison.sets import MeasuredSet, targets
from flows.comparison.training import Stored, Training
from soe_model.methods.method import Instance
from soe_model.specialists.evaluation import window_losses
from soe_model.training.step import NonFiniteLoss
from storage_schema.errors import UserError

FINISHED = "finished"
TIMES = 3
"""How often a forward pass is timed; the quickest counts."""


def measured(
    training: Training,
    contender: Contender,
    sets: list[MeasuredSet],
    *,
    fine_tune_tokens: Sequence[int],
    scratch: Path,
) -> dict[str, Any]:
    """The result of a cell. Raises NonFiniteLoss if a loss at the end is not finite.

    Args:
        fine_tune_tokens: as :func:`fine_tuned`; none: not at all.
        scratch: a folder for what is done of it.
    """
    pretraining = training.pretraining
    number = training.num_points
    points = [_before_the_end(training, contender, sets, point) for point in range(1, number)]
    last, instances = _at(training, contender, sets, number)
    points.append(last)
    for name, losses in last["window_losses"].items():
        if not all(map(math.isfinite, losses)):
            raise NonFiniteLoss(
                f"the loss on {name} is not finite after training.", step=pretraining.steps, mixtures=[]
            )
    cost, anew = asdict(contender.method.cost()), contender.anew
    of_a_run = last["seconds"] / len(pretraining.runs) if anew else 0.0
    tuned = {}
    if fine_tune_tokens:
        scratch.mkdir(parents=True, exist_ok=True)
        kept = scratch / "fine-tuned.json"
        tuned["fine_tuned"] = fine_tuned(
            contender.method, instances, sets, fine_tune_tokens, seed=pretraining.seed, kept=kept
        )
    return tuned | {
        "method": contender.label,
        "seed": pretraining.seed,
        "status": FINISHED,
        "said": "",
        "anew": anew,
        "steps": pretraining.steps,
        "cost": cost,
        "all_flops": cost["pretraining_flops"] + anew * len(targets(sets)) * cost["specialist_flops"],
        "seconds_to_specialist": last["seconds_to_specialist"] + of_a_run,
        "seconds_per_token": last["seconds_per_token"],
        "points": [
            {
                "tokens": int(point["tokens"]),
                "seconds": point["seconds"],
                "losses": {
                    name: sum(losses) / len(losses)
                    for name, losses in point["window_losses"].items()
                    if all(map(math.isfinite, losses))
                },
            }
            for point in points
        ],
        "window_losses": last["window_losses"],
    }


def _before_the_end(
    training: Training, contender: Contender, sets: list[MeasuredSet], point: int
) -> dict[str, Any]:
    """As :func:`_at`, but without losses where a method has no model yet, such as one whose gates are still small."""
    try:
        return _at(training, contender, sets, point)[0]
    except UserError:
        return training.at(point)[1] | {"window_losses": {}}


def _at(
    training: Training, contender: Contender, sets: list[MeasuredSet], point: int
) -> tuple[dict[str, Any], list[Instance]]:
    """Losses of each window of the sets at one point, the time of a specialist and of a token, and the models."""
    method = contender.method
    trained, spent = training.at(point)
    begun = time.perf_counter()
    of_sets = targets(sets)
    instances = list(
        method.instantiate(
            trained,
            torch.stack([one.weights_K for one in of_sets]),
            [one.choosing_nL1 for one in of_sets],
        )
    )
    loading = sum(sum(one.loading) for one in trained if isinstance(one, Stored))
    seconds = (time.perf_counter() - begun - loading) / len(of_sets)
    seconds += sum(
        training.record(run)["seconds_to_models"] for run in training.pretraining.runs if run.soup.num_experts
    )
    if len(of_sets) < len(sets) and not contender.anew:
        generic = sets[-1]
        instances += list(method.instantiate(trained, generic.weights_K[None], [generic.choosing_nL1]))
    losses = {
        one.name: method.loss(instance, one.evaluation_nL1).tolist()
        for one, instance in zip(sets, instances, strict=False)
    }
    module, window_1L1 = method.module_with(instances[0]), sets[0].evaluation_nL1[:1]
    found = spent | {
        "window_losses": losses,
        "seconds_to_specialist": seconds,
        "seconds_per_token": min(_seconds_of(module, window_1L1) for _ in range(TIMES))
        / (window_1L1.shape[1] - 1),
    }
    return found, instances


def _seconds_of(module: Any, windows_nL1: torch.Tensor) -> float:
    begun = time.perf_counter()
    window_losses(module, windows_nL1)
    return time.perf_counter() - begun
