"""Multiple choice after training (the paper's figure 5): models of the questions' domain weights answer others.

Of each task one half of the questions says what it is like (Algorithm 3), and the model of these weights answers the
other half, by log-likelihood. The soup is asked, other methods whose models follow the weights, and the generic model.

<folder>/multiple-choice/<method>-seed-<seed>/result.json   right or wrong, and the margin, of each question

Legend: T tasks, K domains.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import torch

from flows.comparison.after_training.big_bench import Task, read_tasks
from flows.comparison.cells import failed
from flows.comparison.contenders import Contender, is_mixture
from flows.comparison.further import follows_weights, stage_of
from flows.comparison.measuring import FINISHED
from flows.comparison.place import RESULT, Place
from flows.comparison.pretrainings import Pretraining
from flows.comparison.read_sets import weights_of
from flows.comparison.training import Training
from flows.reporting.progress import progress
from flows.settings import CompareMethods
from pipeline.cores import compute_on
from pipeline.tasks import run_tasks
from pipeline.tokenizer import load_tokenizer
from soe_model.methods.generic import Generic
from soe_model.model.backbone import build_backbone
from storage_schema.domains import DomainStore
from storage_schema.errors import UserError
from storage_schema.json_files import read_object
from storage_schema.manifest import content_digest, write_atomically

KIND, FOLDER = "comparison-choices", "multiple-choice"
MOST = 200
"""Questions of a task that are answered, and as many others that say what it is like."""
LACKING = "multiple choice is left out: it needs lm-evaluation-harness, which the extra `exports` installs"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The questions that are answered, and the domain weights of the others."""

    tasks: list[Task]
    weights_TK: torch.Tensor

    @property
    def digest(self) -> str:
        return content_digest(
            {"tasks": [asdict(one) for one in self.tasks], "weights": self.weights_TK.tolist()}
        )


def asked(settings: CompareMethods, store: DomainStore, length: int) -> Asked:
    """Read the tasks of the settings, and place them among the domains.

    Raises ValueError as :func:`read_tasks`, and for a choice longer than a model's windows of `length` tokens.
    """
    names = list(dict.fromkeys(settings.multiple_choice_tasks))
    tasks = read_tasks(str(settings.multiple_choice), names)
    tokenizer = load_tokenizer(store.folder.parent / "tokenizer")
    for one in tasks:
        said = [f" {choice}" for choices in one.choices for choice in choices]
        longest = max(len(ids) - 1 for ids in tokenizer.encode(said))
        if longest > length:
            raise UserError(
                f"multiple_choice_tasks: a choice of {one.name} has {longest} tokens, and the models read {length} "
                "(sequence_length): leave the task out."
            )
    likes = [one.part(0, MOST).questions for one in tasks]
    return Asked(
        tasks=[one.part(1, MOST) for one in tasks], weights_TK=torch.stack(weights_of(likes, store, length))
    )


def is_there() -> bool:
    """Whether the harness is installed."""
    return find_spec("lm_eval") is not None


def all_answers(
    place: Place, of: Asked, trained: Sequence[Pretraining], cells: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Of each method with each seed whose cell is finished, and has not diverged: ``method``, ``seed`` and the answers
    by task, in Ray tasks; what is answered already is read, and what fails is left out.
    """
    finished = {(cell["method"], cell["seed"]) for cell in cells if cell["status"] == FINISHED}
    waiting = [
        (place, of, one, contender)
        for one in trained
        for contender in one.contenders
        if _answers(contender) and (contender.label, one.seed) in finished
    ]
    try:
        with progress("ask the models", "models") as report:
            found = run_tasks(answered, waiting, report=report, num_cpus=place.cores)
    except RuntimeError as error:  # a worker died; the next run asks again
        print(f"multiple choice is left out: {error}", flush=True)
        return []
    return [one for one in found if one is not None]


def _answers(contender: Contender) -> bool:
    return not (contender.variant or is_mixture(contender.label)) and (
        follows_weights(contender.method) or isinstance(contender.method, Generic)
    )


def answered(
    place: Place, of: Asked, pretraining: Pretraining, contender: Contender
) -> dict[str, Any] | None:
    """One method with one seed. Never raises; says what went wrong, and returns None."""
    compute_on(place.cores)
    try:
        return _answered(place, of, pretraining, contender)
    except Exception as error:
        failed(pretraining, contender, error)
        return None


def _answered(place: Place, of: Asked, pretraining: Pretraining, contender: Contender) -> dict[str, Any]:
    folder, asked_now = place.folder / FOLDER, {"asked": of.digest}
    stage = stage_of(folder, KIND, pretraining, contender, place.sets_digest, asked_now)
    if stage.finished is None:
        by_task = _ask(place, of, pretraining, contender)
        write_atomically(stage.work / RESULT, json.dumps(by_task, indent=1, allow_nan=False))
        stage.finish({"tasks": len(of.tasks)})
    return {
        "method": contender.label,
        "seed": pretraining.seed,
        "by_task": read_object(stage.folder / RESULT),
    }


def _ask(place: Place, of: Asked, pretraining: Pretraining, contender: Contender) -> dict[str, Any]:
    from flows.comparison.after_training.harness import answers

    store, method = place.store(), contender.method
    training = Training(
        pretraining=pretraining,
        folder=place.training(pretraining).folder,
        store=store,
        points=place.points,
        domain_weights_RK=of.weights_TK,
    )
    models = method.instantiate([training.at_the_end(run) for run in pretraining.runs], of.weights_TK)
    backbone = build_backbone(method.soup.backbone, seed=0)
    tokenizer = load_tokenizer(store.folder.parent / "tokenizer")
    found = {}
    for task, model_P in zip(of.tasks, models, strict=True):
        backbone.params_P.copy_(model_P)
        found[task.name] = answers(backbone.module, tokenizer, method.training.sequence_length, task)
    return found
