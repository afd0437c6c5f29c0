"""How many steps a comparison can have, and how long it will take: each training's rate is measured first."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from statistics import median

import numpy as np
import torch

from flows.comparison.cells import failed, side_by_side
from flows.comparison.contenders import Contender, is_mixture, step_tokens
from flows.comparison.fine_tuning import BACKWARD, windows_read
from flows.comparison.place import Place, finished
from flows.comparison.pretrainings import Pretraining
from flows.comparison.sets import MeasuredSet, targets
from flows.comparison.training import stream_of
from flows.reporting import job_output
from flows.settings import CompareMethods
from pipeline.cores import compute_on
from pipeline.remote.store import open_store
from pipeline.tasks import run_tasks
from soe_model.methods.method import Learner
from soe_model.presets import preset
from storage_schema.errors import UserError

LEAST_STEPS = 10
TIMED_STEPS, TIMED_SECONDS = (4, 16), 2.0
"""Of each kind of run, fewest and most, and after how long no more than the fewest. The median is taken: the first
steps of a process are several times as slow as the rest."""
OF_HOURS = 0.85
"""Share of the hours that is planned: reading, measuring and the page come beside it."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Of one pretraining, in seconds."""

    training: float
    """All of its runs, of the steps that they have."""
    window: float
    """A window through one of its models, forward."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """What is left of one pretraining, in seconds."""

    training: float
    """Of its runs."""
    measuring: float
    """All of its contenders at all points, after fine-tuning, and at the other weights that are asked for."""


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


def planned(
    settings: CompareMethods,
    place: Place,
    todo_of: Callable[[int], list[Pretraining]],
    begun_steps: int | None,
    steps: int,
) -> tuple[int, list[Pretraining], dict[str, float]]:
    """The steps of each method, all that is trained, and by name how many seconds of training are left; says so.

    Args:
        begun_steps: of an earlier run of the comparison; None: this is the first.
        steps: :func:`steps_of_tokens`; the most, where the settings name hours.
    """
    chosen = begun_steps or steps
    todo = todo_of(chosen)
    left = [one for one in todo if finished(place, one) is None]
    paces = _paces(place, left)
    slots = side_by_side(place.cores)
    if begun_steps is None and settings.hours is not None:
        rates = [left_of(place, one, paces[_labels(one)[0]]) for one in left]
        chosen = steps_in_hours(settings, rates, steps, slots)
        todo = left = todo_of(chosen)
        paces = {
            label: Pace(training=pace.training * chosen / steps, window=pace.window)
            for label, pace in paces.items()
        }
    rates = [left_of(place, one, paces[_labels(one)[0]]) for one in left]
    if left:
        _say(settings, place, left, rates, chosen, slots)
    return chosen, todo, {one.name: rate.training for one, rate in zip(left, rates, strict=True)}


def _paces(place: Place, left: list[Pretraining]) -> dict[str, Pace]:
    """How long each takes, by label: timed with one seed, as many at once as will train."""
    of_labels = {", ".join(_labels(one)): one for one in left}
    measured = run_tasks(
        measure,
        [(one, place.store_place, place.store_parts, place.cores) for one in of_labels.values()],
        num_cpus=place.cores,
        limit=side_by_side(place.cores),
    )
    timed = zip(of_labels.values(), measured, strict=True)
    return {label: pace for one, pace in timed for label in _labels(one)}


def _labels(one: Pretraining) -> list[str]:
    return ["a model of a mixture"] if is_mixture(one.labels[0]) else list(one.labels)


def measure(pretraining: Pretraining, store_place: str, store_parts: int, cores: int) -> Pace:
    """Time a few steps of each kind of run. One that fails counts as a second: its cell will say why."""
    compute_on(cores)
    try:
        return _timed(pretraining, store_place, store_parts)
    except Exception as error:
        failed(pretraining, pretraining.contenders[0], error)
        return Pace(training=1.0, window=0.0)


def _timed(pretraining: Pretraining, store_place: str, store_parts: int) -> Pace:
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
    first = pretraining.runs[0].training
    sequences = first.batch_size * (1 + first.train_generic)
    return Pace(training=training, window=rates[0] / (BACKWARD * sequences))


def left_of(place: Place, one: Pretraining, pace: Pace) -> Rate:
    """How long what is not finished of it takes: steps that are done, and cells that are measured, take no time."""
    windows = 0.0
    for contender in one.contenders:
        if place.cell(one, contender).finished is None:
            windows += place.points * _windows(contender, place.sets)
            windows += windows_read(contender.method, place.sets, place.tuned_on(contender))
        windows += place.further.windows_left(one, contender)
    share = 1 - place.steps_done(one) / one.steps
    return Rate(training=share * pace.training, measuring=pace.window * windows)


def _windows(contender: Contender, sets: list[MeasuredSet]) -> float:
    """How many windows a contender reads at a point, those with which it chooses among models too."""
    cost, length = contender.method.cost(), contender.method.training.sequence_length
    choosing = 0.0 if contender.anew else len(sets) * cost.specialist_flops / (cost.token_flops * length)
    return choosing + sum(len(one.evaluation_nL1) for one in sets)


def _step_seconds(learner: Learner, stream: object, steps: int) -> float:
    fewest, most = TIMED_STEPS
    times: list[float] = []
    for batch in stream.in_process(0, min(most, steps)):  # type: ignore[attr-defined]
        begun = time.perf_counter()
        learner.train_step(
            torch.from_numpy(batch.tokens_BL1.astype(np.int64)),
            torch.from_numpy(batch.mixture_B),
            torch.from_numpy(batch.domain_weights_WK),
        )
        times.append(time.perf_counter() - begun)
        if len(times) >= fewest and sum(times) > TIMED_SECONDS:
            break
    return median(times)


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


def _say(
    settings: CompareMethods, place: Place, left: list[Pretraining], rates: list[Rate], steps: int, slots: int
) -> None:
    cells = sum(len(one.contenders) for one in left)
    whole = makespan([rate.training + rate.measuring for rate in rates], slots)
    lines = [
        f"{cells} cells in {sum(rate.training > 0 for rate in rates)} trainings, {slots} side by side; {steps:,} steps "
        f"and {steps * step_tokens(settings):,} tokens for each method and seed, {len(targets(place.sets))} sets. "
        f"Expected: {timedelta(seconds=round(whole))} ({whole / 3600:.2f} hours)."
    ]
    longest: dict[str, tuple[Pretraining, Rate]] = {}
    for one, rate in zip(left, rates, strict=True):
        alike = ", ".join(_labels(one))
        if alike not in longest or rate.training > longest[alike][1].training:
            longest[alike] = (one, rate)
    lines += [f"- {alike}: {_left(*of)}" for alike, of in longest.items()]
    print("\n".join(lines), flush=True)
    job_output.write_card("plan", "# Plan\n\n" + "\n".join(lines))


def _left(one: Pretraining, rate: Rate) -> str:
    """Of the longest of those that are alike."""
    if not rate.training:
        return f"trained already; measured in {timedelta(seconds=round(rate.measuring))}"
    runs = f"{len(one.runs)} runs" if len(one.runs) > 1 else "1 run"
    return f"{runs}, {timedelta(seconds=round(rate.training))} per seed"
