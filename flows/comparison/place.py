"""Where the cells of a comparison lie, and which are finished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.comparison import checkpoint
from flows.comparison.contenders import Contender, is_mixture
from flows.comparison.further import Further, Question, stage_of
from flows.comparison.measuring import FINISHED
from flows.comparison.pretrainings import Pretraining
from flows.comparison.sets import MeasuredSet
from pipeline.remote.store import open_store
from storage_schema.domains import DomainStore
from storage_schema.json_files import read_object
from storage_schema.manifest import verify_files
from storage_schema.stage import Stage, open_stage

KIND, TRAINED_KIND = "comparison-cell", "comparison-training"
RESULT = "result.json"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the cells lie, and what all of them read."""

    folder: Path
    store_place: str
    store_parts: int
    sets: list[MeasuredSet]
    sets_digest: str
    points: int
    checkpoint_seconds: float
    cores: int
    fine_tune_tokens: tuple[int, ...] = ()
    questions: Mapping[str, Question] = field(default_factory=dict)

    @property
    def further(self) -> Further:
        return Further(
            folder=self.folder / "further",
            sets=self.sets,
            sets_digest=self.sets_digest,
            questions=self.questions,
        )

    def store(self) -> DomainStore:
        return open_store(self.store_place, num_volumes=self.store_parts)

    def tuned_on(self, contender: Contender) -> tuple[int, ...]:
        """The numbers of tokens for fine-tuning; none for variants, and for models of random mixtures."""
        return () if contender.variant or is_mixture(contender.label) else self.fine_tune_tokens

    def cell(self, pretraining: Pretraining, contender: Contender) -> Stage:
        tokens = self.tuned_on(contender)
        tuned: dict[str, Any] = {"fine_tune_tokens": list(tokens)} if tokens else {}
        if tokens and not contender.method.routed:
            tuned["stopping"] = "documents"
        chosen = {"points": self.points} | tuned
        return stage_of(self.folder / "cells", KIND, pretraining, contender, self.sets_digest, chosen)

    def is_left_to_tune(self, trained: Sequence[Pretraining]) -> bool:
        """Whether a cell is not finished that has fine-tuning."""
        return any(
            self.tuned_on(contender)
            and not contender.method.routed
            and self.cell(one, contender).finished is None
            for one in trained
            for contender in one.contenders
        )

    def training(self, pretraining: Pretraining) -> Stage:
        return open_stage(
            self.folder / "trained" / pretraining.name,
            kind=TRAINED_KIND,
            configuration={"runs": [run.name for run in pretraining.runs], "points": self.points},
            inputs={"training": pretraining.digest, "sets": self.sets_digest},
            rebuild=True,
        )

    def steps_done(self, pretraining: Pretraining) -> int:
        """Steps of its runs that are not done again: all of a finished one, those of a checkpoint otherwise."""
        if not any((self.folder / "trained").glob(f"{pretraining.name}*")):
            return 0
        stage = self.training(pretraining)
        if stage.finished is not None:
            return pretraining.steps
        return sum(
            run.training.steps
            if (stage.work / f"{run.name}.json").exists()
            else checkpoint.steps_of(stage.scratch / run.name)
            for run in pretraining.runs
        )

    def told(self, pretraining: Pretraining) -> Path:
        """The file that says how many steps are done."""
        return self.folder / "progress" / pretraining.name


def finished(place: Place, pretraining: Pretraining) -> list[dict[str, Any]] | None:
    """The results of all cells of a pretraining; None unless all are there and whole."""
    found = []
    for contender in pretraining.contenders:
        stage = place.cell(pretraining, contender)
        if stage.finished is None:
            return None
        verify_files(stage.folder, stage.finished)
        result = read_object(stage.folder / RESULT)
        more = place.further.finished(pretraining, contender) if result["status"] == FINISHED else {}
        if more is None:
            return None
        found.append(result | more)
    return found
