"""A toy store, sets that lie on its domains, and settings that train in a second."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flows.comparison.contenders import contenders
from flows.comparison.place import Place
from flows.comparison.pretrainings import Pretraining, pretrainings
from flows.comparison.sets import MeasuredSet, targets
from flows.comparison.training import Training
from flows.settings import CompareMethods
from storage_schema.domains import DomainStore
from storage_schema.stage import Stage
from tests.toy_store import make_store

LENGTH = 8


def settings(store: Path, **given) -> CompareMethods:
    chosen = dict(
        store=str(store), methods=["soup", "generic"], preset="tiny", seeds=[0], tokens=24 * 4 * LENGTH, batch_size=4,
        sequence_length=LENGTH, num_experts=2, mixtures_per_step=2, support_size=2, groups=2, points=3,
        checkpoint_seconds=1e-9,
    )  # fmt: skip
    return CompareMethods(**{**chosen, **given}).of_size()


def toy_store(folder: Path) -> DomainStore:
    return DomainStore(make_store(folder / "store", [400] * 4))


def toy_sets(store: DomainStore) -> list[MeasuredSet]:
    """Two sets, each of one domain's tokens, and the generic mixture."""
    sets = []
    for number, (name, kind) in enumerate(
        (("first", "seen"), ("second", "unseen"), ("generic mixture", "generic"))
    ):
        weights_K = torch.full((4,), 0.25) if kind == "generic" else torch.eye(4)[number]
        tokens = torch.randint(1, 8, (6, LENGTH + 1), generator=torch.Generator().manual_seed(number))
        windows = tokens + 7 * (number if kind != "generic" else 2)
        sets.append(
            MeasuredSet(
                name=name,
                kind=kind,
                weights_K=weights_K,
                choosing_nL1=windows[:3],
                evaluation_nL1=windows[3:],
            )
        )
    return sets


def place(folder: Path, store: DomainStore, chosen: CompareMethods) -> Place:
    return Place(
        folder=folder,
        store_place=str(store.folder.parent),
        store_parts=1,
        sets=toy_sets(store),
        sets_digest="s" * 64,
        points=chosen.points or 1,
        checkpoint_seconds=chosen.checkpoint_seconds,
        cores=1,
        fine_tune_tokens=tuple(chosen.fine_tune_tokens or ()),
    )


def all_pretrainings(chosen: CompareMethods, store: DomainStore, *, steps: int = 24) -> list[Pretraining]:
    weights_WK = torch.stack([one.weights_K for one in targets(toy_sets(store))])
    made = contenders(chosen, store, seed=0, steps=steps)
    return pretrainings(made, weights_WK, seed=0, store=store.digest)


def train_until(there: Place, store: DomainStore, pretraining: Pretraining, step: int) -> Stage:
    """Train, with a checkpoint after each step, until the power is cut at this step of all its runs; the stage."""
    stage = there.training(pretraining)

    def power_cut(steps):
        if steps == step:
            raise KeyboardInterrupt

    part = Training(
        pretraining=pretraining,
        folder=stage.work,
        store=store,
        points=there.points,
        domain_weights_RK=there.sets[0].weights_K[None],
        checkpoint_seconds=1e-9,
    )
    with pytest.raises(KeyboardInterrupt):
        part.to_the_end(stage.scratch, power_cut)
    return stage
