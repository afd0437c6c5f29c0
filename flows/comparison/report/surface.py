"""The surface from mixtures to losses: a soup's predictions for random mixtures, and what models trained on them reach.

Mixtures are uniform on as many random domains as a soup's training draws. A model is trained on each, as CRISP trains
one: it is a generic model, with the mixture in place of the generic one. A prediction is the loss of the soup's model
of the mixture, which costs no training. If both rank the mixtures alike, a user who looks for a mixture needs no swarm
of trainings.

Legend: M mixtures, K domains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from flows.comparison.contenders import Contender, contenders, is_mixture, of_mixture
from flows.comparison.further import FURTHER, Question, follows_weights
from flows.comparison.measuring import FINISHED
from flows.comparison.pretrainings import Pretraining, pretrainings
from flows.comparison.report.by_number import SOUP, labels_of
from flows.comparison.sets import MeasuredSet
from flows.settings import CompareMethods
from pipeline.mixtures.meta_distributions import Sparse
from pipeline.mixtures.plan import MixturePlan
from pipeline.mixtures.ranking import LEAST, by_embeddings, compare_ranks
from pipeline.mixtures.ratios import RUN, RUN_ID, UNREAD, write_ratios
from soe_model.methods.generic import Generic
from storage_schema.domains import DomainStore
from storage_schema.errors import UserError
from storage_schema.manifest import write_atomically

SURFACE = "surface"
SEED = 0x50FA
"""Of the mixtures, which are the same for all seeds of a comparison, and none of those that a soup is trained on."""
EMBEDDINGS = "embeddings alone"
"""The prediction without a model: the nearer a mixture's mean centroid is to the set's, the less the loss."""


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
        Contender(label=of_mixture(row), method=replace(generic, generic_K=weights_K), options={})
        for row, weights_K in enumerate(asked.weights_MK)
    ]
    return pretrainings(made, asked.weights_MK, seed=seed, store=store.digest)


def _generic(settings: CompareMethods, store: DomainStore, *, seed: int, steps: int) -> Generic:
    alone = settings.model_copy(update={"methods": ["generic"], "options": {}})
    [generic] = contenders(alone, store, seed=seed, steps=steps)
    assert isinstance(generic.method, Generic)
    return generic.method


def collect_surface(
    cells: Sequence[Mapping[str, Any]],
    asked: Question,
    sets: Sequence[MeasuredSet],
    centroids_KD: np.ndarray,
) -> dict[str, Any] | None:
    """How well each method ranks the mixtures, a soup first; None where no method was asked, or too few mixtures were
    trained on.

    Args:
        cells: of all methods and of the mixtures.
        centroids_KD: of the domains.
    """
    of_methods = [cell for cell in cells if SURFACE in cell.get(FURTHER, {})]
    if not of_methods:
        return None
    predictions = {
        method: np.asarray(
            [
                [cell[FURTHER][SURFACE][one.name] for one in sets]
                for cell in of_methods
                if cell["method"] == method
            ],
            dtype=np.float64,  # None becomes NaN
        )
        for method in labels_of(of_methods)
    }
    sets_RK = torch.stack([one.weights_K for one in sets])
    alone_RM = by_embeddings(asked.weights_MK.double().numpy(), sets_RK.double().numpy(), centroids_KD)
    found = compare_ranks(_trained(cells, asked, sets), predictions | {EMBEDDINGS: alone_RM[None]})
    if found is None:
        return None
    del found["predicted"][EMBEDDINGS]
    ranked = [{"method": method} | of_method for method, of_method in found["ranked"].items()]
    return found | {"ranked": ranked, "of": len(asked.weights_MK), "sets": [one.name for one in sets]}


def _trained(cells: Sequence[Mapping[str, Any]], asked: Question, sets: Sequence[MeasuredSet]) -> np.ndarray:
    """Losses of the models that were trained on the mixtures, [seeds, sets, M]; NaN where there is none."""
    losses = {
        (cell["seed"], cell["method"]): cell["points"][-1]["losses"]
        for cell in cells
        if is_mixture(cell["method"]) and cell["status"] == FINISHED
    }
    return np.asarray(
        [
            [
                [
                    losses.get((seed, of_mixture(row)), {}).get(one.name, np.nan)
                    for row in range(len(asked.weights_MK))
                ]
                for one in sets
            ]
            for seed in sorted({cell["seed"] for cell in cells})
        ]
    )


def answer(surface: Mapping[str, Any] | None) -> str:
    """In words: whether a soup, or else the first of the methods with models of mixtures, ranks them."""
    if surface is None:
        return (
            f"Whether a soup ranks mixtures was not measured: fewer than {LEAST} models of mixtures, or no soup, were "
            "trained to their end."
        )
    first, count = surface["ranked"][0], len(surface["mixtures"])
    whose = "a soup" if first["method"] == SOUP else first["method"]
    if first["spearman"] is None or first["error"] is None:
        return f"Whether {whose} ranks mixtures cannot be said: the losses of its models of them are equal."
    verdict = "ranks mixtures here" if holds(surface) else "does not surely rank mixtures here"
    beside = [
        f"by the distance of embeddings alone {said(one)}"
        for one in surface["ranked"]
        if one["method"] == EMBEDDINGS
    ]
    if surface["seeds_agree"] is not None:
        beside.append(f"trained again with another seed {surface['seeds_agree']:.2f}")
    subject = whose[0].upper() + whose[1:]
    return (
        f"{subject} {verdict}: Spearman {said(first)} between its losses and those of models trained on {count} random "
        f"mixtures ({'; '.join(beside)}). The mixture that it ranks first has {first['regret']:.3f} nats more than "
        f"the best one, a random one {first['mean_regret']:.3f}."
    )


def holds(surface: Mapping[str, Any]) -> bool:
    """Whether the first method's losses surely rank mixtures as trained models do."""
    first = surface["ranked"][0]
    known = first["spearman"] is not None and first["error"] is not None
    return known and first["spearman"] > 2 * first["error"]


def said(ranked: Mapping[str, Any]) -> str:
    """A rank correlation and its error."""
    if ranked["spearman"] is None:
        return "none"
    return f"{ranked['spearman']:.2f}" + ("" if ranked["error"] is None else f" ± {ranked['error']:.2f}")


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
