"""How many steps a comparison can have, and how long it will take: each training's rate is measured first."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from flows.comparison.contenders import Pretraining, step_tokens
from flows.comparison.fine_tuning import BACKWARD, windows_read
from flows.comparison.sets import MeasuredSet
from flows.comparison.training import stream_of
from flows.settings import CompareMethods
from pipeline.remote.store import open_store
from soe_model.methods.method import Learner
from soe_model.presets import preset
from storage_schema.errors import UserError

LEAST_STEPS = 10
TIMED_STEPS = 4
"""Of each kind of run; the first is not counted."""
OF_HOURS = 0.85
"""Share of the hours that is planned: reading, measuring and the page come beside it."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Of one pretraining, in seconds."""

    training: float
    """All of its runs, of the steps that they have."""
    measuring: float
    """All of its contenders at all points, and after fine-tuning."""


def steps_of_tokens(settings: CompareMethods) -> int:
    """The steps of each method by `tokens`, or the preset's. Raises ValueError for fewer than LEAST_STEPS."""
    if settings.tokens is None:
        return preset(str(settings.preset)).training.steps
    if settings.hours is not None:
        raise UserError("tokens and hours both bound the pretraining: give one of them.")
    steps = settings.tokens // step_tokens(settings)
    if steps < LEAST_STEPS:
        raise UserError(
            f"tokens is {settings.tokens:,}, {steps} steps of {step_tokens(settings):,} tokens: no method learns from "
            f"so few. Give {LEAST_STEPS * step_tokens(settings):,} at least, or a smaller batch_size."
        )
    return steps


def measure(
    pretraining: Pretraining,
    sets: list[MeasuredSet],
    store_place: str,
    store_parts: int,
    points: int,
    cores: int,
    fine_tune_tokens: Sequence[int] = (),
) -> Rate:
    """Time a few steps of each kind of run."""
    torch.set_num_threads(cores)
    store = open_store(store_place, num_volumes=store_parts)
    level: dict[str, int] = {}
    learners: dict[str, Learner] = {}
    rates: list[float] = []
    training = 0.0
    for run in pretraining.runs:
        level[run.name] = 0 if run.begins_from is None else level[run.begins_from] + 1
        if level[run.name] == len(rates):
            learner = pretraining.method.begin(run, learners.get(run.begins_from or ""))
            learners[run.name] = learner
            stream = stream_of(run, store, pretraining.seed, pretraining.law)
            rates.append(_step_seconds(learner, stream, run.training.steps))
        training += rates[level[run.name]] * run.training.steps
    window = rates[0] / (BACKWARD * pretraining.runs[0].training.batch_size)
    windows = points * sum(_windows(pretraining, sets))
    windows += sum(windows_read(one.method, sets, fine_tune_tokens) for one in pretraining.contenders)
    return Rate(training=training, measuring=window * windows)


def _windows(pretraining: Pretraining, sets: list[MeasuredSet]) -> list[float]:
    """How many windows each contender reads at a point, those with which it chooses among models too."""
    found = []
    for contender in pretraining.contenders:
        cost, length = contender.method.cost(), contender.method.training.sequence_length
        choosing = 0.0 if contender.anew else len(sets) * cost.specialist_flops / (cost.token_flops * length)
        found.append(choosing + sum(len(one.evaluation_nL1) for one in sets))
    return found


def _step_seconds(learner: Learner, stream: object, steps: int) -> float:
    times = []
    for batch in stream.in_process(0, min(TIMED_STEPS, steps)):  # type: ignore[attr-defined]
        begun = time.perf_counter()
        learner.train_step(
            torch.from_numpy(batch.tokens_BL1.astype(np.int64)),
            torch.from_numpy(batch.mixture_B),
            torch.from_numpy(batch.domain_weights_WK),
        )
        times.append(time.perf_counter() - begun)
    counted = times[1:] or times
    return sum(counted) / len(counted)


def steps_in_hours(settings: CompareMethods, rates: Sequence[Rate], steps: int, slots: int) -> int:
    """How many steps fit into the hours, where `rates` are of `steps`; `steps` at most.

    Raises ValueError, naming the hours that are needed, where they are fewer than LEAST_STEPS.
    """
    assert settings.hours is not None
    budget = OF_HOURS * 3600 * settings.hours

    def needed(share: float) -> float:
        return makespan([share * rate.training + rate.measuring for rate in rates], slots)

    least = LEAST_STEPS / steps
    if needed(least) > budget:
        raise UserError(
            f"hours is {settings.hours:g}: in that time no method has {LEAST_STEPS} steps, as all together need "
            f"{needed(least) / OF_HOURS / 3600:.2g} hours for so many. Give more hours, or "
            "fewer methods, seeds, sets or fine_tune_tokens."
        )
    return _largest(lambda count: needed(count / steps) <= budget, LEAST_STEPS, steps)


def _largest(fits: Callable[[int], bool], low: int, high: int) -> int:
    """The largest whole number that fits, where `low` does."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def makespan(seconds: Sequence[float], slots: int) -> float:
    """When the last of some tasks ends, if each of `slots` takes the longest that is left."""
    busy = [0.0] * slots
    for one in sorted(seconds, reverse=True):
        busy[busy.index(min(busy))] += one
    return max(busy)
