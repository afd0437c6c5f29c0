"""The pretraining of one or several contenders with one seed: its runs one after the other, each at several points.

<stage>/<run>-1.safetensors …    the run at each point: models of the sets, or the learner's state
<stage>/<run>.json               when each point was reached; written last
<stage>/<run>-state.safetensors  a soup's whole state at the end, from which models of other sets can be made

Legend: R sets and the generic mixture, W mixtures, K domains, P parameters of one model.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from flows.comparison import checkpoint
from flows.comparison.pretrainings import Pretraining
from flows.settings import Pretrain
from flows.training.laws import meta_distribution
from pipeline.mixtures.meta_distributions import Fixed
from pipeline.mixtures.plan import MixturePlan
from pipeline.stream.batches import MixtureStream
from soe_model.methods.flat import FlatMethod
from soe_model.methods.method import Instances, Learner, Run, Trained
from soe_model.training.trainer import SoupTrainer
from storage_schema.aside import written_aside
from storage_schema.domains import DomainStore
from storage_schema.json_files import read_object
from storage_schema.manifest import write_atomically

Told = Callable[[int], None]
"""``told(steps)``: called after each step with the number of steps done in all runs."""
MODELS, WEIGHTS = "models", "domain_weights"


@dataclass(frozen=True)
class Kept:
    """What is kept of a run of ordinary models: those of the sets, or the one that is the same for all."""

    domain_weights_RK: torch.Tensor
    models_RP: torch.Tensor

    def instantiate(self, domain_weights_WK: torch.Tensor) -> torch.Tensor:
        if len(self.models_RP) == 1:
            return self.models_RP.expand(len(domain_weights_WK), -1)
        rows = [(self.domain_weights_RK == weights_K).all(1).nonzero() for weights_K in domain_weights_WK]
        return self.models_RP[[int(found[0, 0]) for found in rows]]


@dataclass(frozen=True)
class Stored:
    """A run of other models, which is begun and filled again for each use."""

    method: FlatMethod
    run: Run
    begun: Trained | None
    file: Path
    loading: list[float] = field(default_factory=list)
    """Seconds of each time that it was filled."""

    def instantiate(self, domain_weights_WK: torch.Tensor) -> Instances:
        clock = time.perf_counter()
        learner = self.method.begin(self.run, self.begun)
        learner.load_state_dict(load_file(self.file))
        self.loading.append(time.perf_counter() - clock)
        return learner.instantiate(domain_weights_WK)


@dataclass(frozen=True, kw_only=True)
class Training:
    """Trains a pretraining in `folder`, the work of its stage or the finished stage."""

    pretraining: Pretraining
    folder: Path
    store: DomainStore
    points: int
    domain_weights_RK: torch.Tensor
    checkpoint_seconds: float = 60.0

    def to_the_end(self, scratch: Path, told: Told = lambda steps: None) -> None:
        """Train what is not trained yet. Raises NonFiniteLoss where a run diverges."""
        done = 0
        for run in self.pretraining.runs:
            if not (self.folder / f"{run.name}.json").exists():
                self._train(run, scratch / run.name, lambda step, before=done: told(before + step))  # type: ignore[misc]
            done += run.training.steps
            told(done)

    def _train(self, run: Run, scratch: Path, told: Told) -> None:
        learner = self.pretraining.method.begin(run, self._begun(run))
        notes: dict[str, Any] = checkpoint.restore(scratch, learner) or {"seconds": 0.0, "points": []}
        if notes["points"] and not self._file(run, len(notes["points"])).exists():
            notes, learner = (
                {"seconds": 0.0, "points": []},
                self.pretraining.method.begin(run, self._begun(run)),
            )
        marks = point_steps(run, self.points)
        clock = saved = time.monotonic()
        for batch in stream_of(run, self.store, self.pretraining.seed, self.pretraining.law).in_process(
            learner.step, run.training.steps
        ):
            result = learner.train_step(
                torch.from_numpy(batch.tokens_BL1.astype(np.int64)),
                torch.from_numpy(batch.mixture_B),
                torch.from_numpy(batch.domain_weights_WK),
            )
            told(learner.step)
            at_point = learner.step in marks
            if not at_point and time.monotonic() - saved < self.checkpoint_seconds:
                continue
            notes["seconds"] += time.monotonic() - clock
            if at_point:
                self._keep(run, learner, len(notes["points"]) + 1)
                notes["points"].append(
                    {"step": learner.step, "seconds": notes["seconds"], "loss": result.loss}
                )
            checkpoint.save(scratch, learner, notes)
            clock = saved = time.monotonic()
        record = notes | {"seconds_to_models": self._seconds_to_models(learner)}
        if isinstance(learner, SoupTrainer) and run.soup.num_experts:
            _save(self._state(run), learner.state_dict())
        write_atomically(self.folder / f"{run.name}.json", json.dumps(record, indent=1))

    def _seconds_to_models(self, learner: Learner) -> float:
        """To a model of one set, from a trained learner."""
        begun = time.perf_counter()
        learner.instantiate(self.domain_weights_RK[:1])
        return time.perf_counter() - begun

    def _keep(self, run: Run, learner: Learner, point: int) -> None:
        tensors = learner.state_dict()
        if isinstance(learner, SoupTrainer):
            weights_RK = self.domain_weights_RK if run.soup.num_experts else self.domain_weights_RK[:1]
            tensors = {WEIGHTS: weights_RK, MODELS: learner.instantiate(weights_RK).contiguous()}
        _save(self._file(run, point), tensors)

    def _file(self, run: Run, point: int) -> Path:
        return self.folder / f"{run.name}-{point}.safetensors"

    def _state(self, run: Run) -> Path:
        return self.folder / f"{run.name}-state.safetensors"

    def _begun(self, run: Run) -> Trained | None:
        if run.begins_from is None:
            return None
        [before] = [one for one in self.pretraining.runs if one.name == run.begins_from]
        return self.trained(before, len(point_steps(before, self.points)))

    def trained(self, run: Run, point: int) -> Trained:
        """The run at a point, from 1 on."""
        file = self._file(run, point)
        tensors = load_file(file)
        if MODELS in tensors:
            return Kept(tensors[WEIGHTS], tensors[MODELS])
        return Stored(self.pretraining.method, run, self._begun(run), file)

    def at_the_end(self, run: Run) -> Trained:
        """The trained run, a soup's with models of any domain weights."""
        state = self._state(run)
        if not state.exists():
            return self.trained(run, len(point_steps(run, self.points)))
        learner = self.pretraining.method.begin(run, self._begun(run))
        learner.load_state_dict(load_file(state))
        return learner

    def at(self, point: int) -> tuple[list[Trained], dict[str, float]]:
        """All runs at a point from 1 on, and the tokens and seconds that they took together.

        A run that others begin from is at its end: what they are at their points includes all of it.
        """
        begun_from = {run.begins_from for run in self.pretraining.runs}
        found, spent = [], {"tokens": 0.0, "seconds": 0.0}
        for run in self.pretraining.runs:
            last = len(point_steps(run, self.points))
            number = last if run.name in begun_from else min(point, last)
            found.append(self.trained(run, number))
            reached = self.record(run)["points"][number - 1]
            spent["tokens"] += reached["step"] * run.training.batch_size * run.training.sequence_length
            spent["seconds"] += reached["seconds"]
        return found, spent

    def record(self, run: Run) -> dict[str, Any]:
        return read_object(self.folder / f"{run.name}.json")

    @property
    def num_points(self) -> int:
        return max(len(point_steps(run, self.points)) for run in self.pretraining.runs)


def point_steps(run: Run, points: int) -> Sequence[int]:
    """After which steps of a run it is kept, ascending; the last is its end."""
    return sorted({max(1, run.training.steps * number // points) for number in range(1, points + 1)})


def stream_of(
    run: Run, store: DomainStore, seed: int, law_settings: Mapping[str, Any] | None = None
) -> MixtureStream:
    """The batches of a run: the draws of all methods come from the same numbers.

    Args:
        law_settings: :attr:`Pretraining.law`, for a run that draws its mixtures; None: sparse ones.
    """
    training = run.training
    windows_K = store.windows_K(training.sequence_length)
    weights_K = run.domain_weights_K
    # Weights travel as float32; the plan wants their sum to be one more exactly than that.
    law = (
        meta_distribution(Pretrain(**law_settings or {}), training, store)
        if weights_K is None
        else Fixed(_summing_to_one(weights_K.double()).numpy())
    )
    plan = MixturePlan(
        windows_K,
        law,
        seed=seed,
        batch_size=training.batch_size,
        mixtures_per_step=training.mixtures_per_step,
        store_digest=store.digest,
        sequence_length=training.sequence_length,
    )
    return MixtureStream(
        store_folder=str(store.folder.parent),
        sequence_length=training.sequence_length,
        plan=plan,
        store_parts=len(store.volumes),
    )


def _summing_to_one(weights_K: torch.Tensor) -> torch.Tensor:
    return weights_K / weights_K.sum()


def _save(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    with written_aside(path) as aside:
        save_file(tensors, aside)
