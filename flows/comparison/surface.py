"""The surface from mixtures to losses: a soup's predictions for random mixtures, and what models trained on them reach.

Mixtures are drawn as a soup's training draws them. A model is trained on each, as CRISP trains one: it is a generic
model, with the mixture in place of the generic one. A prediction is the loss of the soup's model of the mixture, which
costs no training. If both rank the mixtures alike, a user who looks for a mixture needs no swarm of trainings.

How alike they are: ranking.py. Legend: M mixtures, K domains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import torch

from flows.comparison.contenders import Contender, Pretraining, contenders, pretrainings
from flows.comparison.further import Question, follows_weights
from flows.comparison.sets import MeasuredSet
from flows.settings import CompareMethods
from pipeline.mixtures.meta_distributions import Sparse
from pipeline.mixtures.plan import MixturePlan
from pipeline.mixtures.ratios import RUN, RUN_ID, UNREAD, write_ratios
from soe_model.methods.generic import Generic
from storage_schema.domains import DomainStore
from storage_schema.errors import UserError
from storage_schema.manifest import write_atomically

SURFACE, MIXTURE = "surface", "mixture-"
LEAST = 4
"""Mixtures; of fewer the ranks say nothing."""
SEED = 0x50FA
"""Of the mixtures, which are the same for all seeds of a comparison, and none of those that a soup is trained on."""


def check(mixtures: int, made: Sequence[Contender]) -> None:
    """Raise ValueError for mixtures that were asked for and that no ranks come of."""
    if 0 < mixtures < LEAST:
        raise UserError(
            f"mixtures is {mixtures}: the ranks of so few say nothing. Give {LEAST} or more, or 0 for none."
        )
    if mixtures and not any(follows_weights(one.method) for one in made):
        raise UserError(
            f"mixtures is {mixtures}, and none of the methods has models of mixtures: add soup, pareto or "
            "merged-linear to methods, or give 0."
        )


def mixtures_plan(settings: CompareMethods, store: DomainStore) -> MixturePlan:
    """The plan whose first steps are the mixtures: of as many domains as those that a soup is trained on."""
    training = _generic(settings, store, seed=0, steps=1).training
    return MixturePlan(
        store.windows_K(training.sequence_length),
        Sparse(support_size=training.support_size),
        seed=SEED,
        batch_size=1,
    )


def question(settings: CompareMethods, store: DomainStore, sets: Sequence[MeasuredSet]) -> Question:
    """What is predicted: each set's loss of each mixture."""
    count = int(settings.mixtures or 0)
    weights_MK = mixtures_plan(settings, store).first_mixtures(count, stop=count)
    return Question(
        weights_MK=torch.from_numpy(weights_MK).float(),
        rows={one.name: list(range(count)) for one in sets},
    )


def trainings(
    settings: CompareMethods, store: DomainStore, asked: Question, *, seed: int, steps: int
) -> list[Pretraining]:
    """A pretraining for each mixture, of `steps` steps."""
    generic = _generic(settings, store, seed=seed, steps=steps)
    made = [
        Contender(label=f"{MIXTURE}{row:03d}", method=replace(generic, generic_K=weights_K), options={})
        for row, weights_K in enumerate(asked.weights_MK)
    ]
    return pretrainings(made, asked.weights_MK, seed=seed, store=store.digest)


def is_mixture(label: str) -> bool:
    """Whether a contender of that label is a model that was trained on one of the mixtures."""
    return label.startswith(MIXTURE)


def _generic(settings: CompareMethods, store: DomainStore, *, seed: int, steps: int) -> Generic:
    alone = settings.model_copy(update={"methods": ["generic"], "options": {}})
    [generic] = contenders(alone, store, seed=seed, steps=steps)
    assert isinstance(generic.method, Generic)
    return generic.method


def write_tables(folder: Path, plan: MixturePlan, surface: Mapping[str, Any]) -> None:
    """Olmix's two tables of the trained models and of each method's predictions, as `soe score` writes them.

    <folder>/trained/ratios.csv, metrics.csv; <folder>/soup/ratios.csv, metrics.csv; …
    """
    taken = {RUN, RUN_ID, *UNREAD}
    columns = [f"{name} (set)" if name in taken else name for name in surface["sets"]]
    for label, losses in {"trained": surface["trained"], **surface["predicted"]}.items():
        place = folder / label.replace(":", "@")
        place.mkdir(parents=True, exist_ok=True)
        write_ratios(plan, 0, surface["of"], place / "ratios.csv")
        names = [str(row) for row in surface["mixtures"]]
        table = pl.DataFrame({RUN: names, **dict(zip(columns, losses, strict=True))})
        write_atomically(place / "metrics.csv", table.write_csv())
