"""What methods whose models follow the domain weights are worth at other weights than those of the sets.

Their models of any weights cost no training, so they are measured after it, and joined to a cell that is finished.

<folder>/<question>/<method>-seed-<seed>/result.json   the losses

Legend: M domain weights, K domains.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flows.comparison.contenders import Contender
from flows.comparison.pretrainings import Pretraining
from flows.comparison.sets import MeasuredSet
from flows.comparison.training import Training
from soe_model.methods.flat import FlatMethod
from soe_model.methods.merging import LinearMerge
from soe_model.methods.method import Instance
from soe_model.methods.pareto import Pareto
from soe_model.methods.soup import Soup
from storage_schema.json_files import read_object
from storage_schema.manifest import content_digest, write_atomically
from storage_schema.stage import Stage, open_stage

KIND, RESULT, FURTHER = "comparison-further", "result.json", "further"
TOGETHER = 8
"""Models made at once."""
Losses = dict[str, list[float | None]]
"""Set → its mean loss under the models of its rows, in their order; None where that is not finite."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """Domain weights, and which sets are measured under the models of them."""

    weights_MK: torch.Tensor
    """float32."""
    rows: Mapping[str, Sequence[int]]
    """Set → the rows of the weights that it is measured under."""

    @property
    def digest(self) -> str:
        at = self.weights_MK.nonzero()
        weights = self.weights_MK[at[:, 0], at[:, 1]]
        rows = {name: list(rows) for name, rows in self.rows.items()}
        return content_digest({"at": at.tolist(), "weights": weights.tolist(), "rows": rows})


def stage_of(
    folder: Path,
    kind: str,
    pretraining: Pretraining,
    contender: Contender,
    sets_digest: str,
    configuration: Mapping[str, Any],
) -> Stage:
    """Where the folder keeps what was found of a method with one seed; another method, training or sets replace it."""
    return open_stage(
        folder / f"{contender.label.replace(':', '@')}-seed-{pretraining.seed}",
        kind=kind,
        configuration={"method": contender.label, "options": contender.options, **configuration},
        inputs={"training": pretraining.digest, "sets": sets_digest},
        rebuild=True,
    )


def follows_weights(method: FlatMethod) -> bool:
    """Whether the method makes a model of domain weights alone, and another one of others."""
    merge = isinstance(method, LinearMerge) and method.num_candidates == 1
    return merge or isinstance(method, (Soup, Pareto))


@dataclass(frozen=True, kw_only=True)
class Further:
    """The questions of a comparison, and where the answers to them lie."""

    folder: Path
    sets: list[MeasuredSet]
    sets_digest: str
    questions: Mapping[str, Question]
    """By name."""

    def finished(self, pretraining: Pretraining, contender: Contender) -> dict[str, Any] | None:
        """What :meth:`measured` would say; None where it is not finished."""
        stages = self._stages(pretraining, contender)
        if any(stage.finished is None for stage in stages.values()):
            return None
        return _joined({name: read_object(stage.folder / RESULT) for name, stage in stages.items()})

    def measured(self, training: Training, contender: Contender) -> dict[str, Any]:
        """Question → :data:`Losses` under the key FURTHER; empty for a variant, and for models that follow no weights.

        What is finished is read.
        """
        for name, stage in (stages := self._stages(training.pretraining, contender)).items():
            if stage.finished is None:
                losses = losses_at(training, contender.method, self.questions[name], self.sets)
                write_atomically(stage.work / RESULT, json.dumps(losses, indent=1, allow_nan=False))
                stage.finish({"models": len(self.questions[name].weights_MK)})
        return _joined({name: read_object(stage.folder / RESULT) for name, stage in stages.items()})

    def windows_left(self, pretraining: Pretraining, contender: Contender) -> int:
        """How many windows pass through a model for what is not answered yet."""
        windows = {one.name: len(one.evaluation_nL1) for one in self.sets}
        return sum(
            len(rows) * windows[name]
            for asked, stage in self._stages(pretraining, contender).items()
            if stage.finished is None
            for name, rows in self.questions[asked].rows.items()
        )

    def _stages(self, pretraining: Pretraining, contender: Contender) -> dict[str, Stage]:
        if contender.variant or not follows_weights(contender.method):
            return {}
        return {
            name: stage_of(
                self.folder / name, KIND, pretraining, contender, self.sets_digest, {"asked": one.digest}
            )
            for name, one in self.questions.items()
        }


def _joined(answers: dict[str, Any]) -> dict[str, Any]:
    return {FURTHER: answers} if answers else {}


def losses_at(
    training: Training, method: FlatMethod, question: Question, sets: Sequence[MeasuredSet]
) -> Losses:
    """The losses of a finished training's models."""
    wanted = {name: set(rows) for name, rows in question.rows.items()}
    windows = {one.name: one.evaluation_nL1 for one in sets if one.name in wanted}
    found: dict[str, dict[int, float]] = {name: {} for name in windows}
    for row, instance in enumerate(_instances(training, method, question.weights_MK)):
        for name, windows_nL1 in windows.items():
            if row in wanted[name]:
                found[name][row] = method.loss(instance, windows_nL1).mean().item()
    return {
        name: [loss if math.isfinite(loss := found[name][row]) else None for row in question.rows[name]]
        for name in windows
    }


def _instances(training: Training, method: FlatMethod, weights_MK: torch.Tensor) -> Iterator[Instance]:
    trained = [training.at_the_end(run) for run in training.pretraining.runs]
    for some_MK in weights_MK.split(TOGETHER):
        yield from method.instantiate(trained, some_MK)
