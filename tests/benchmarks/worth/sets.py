"""The sets that runs are measured on, and an unfinished run measured on them as `soe specialize` measures a soup.

Legend: W instances, K domains, N experts, P parameters of an instance, n windows, L tokens in a window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from flows.specialists.blend import blended_weights
from flows.specialists.losses import LossMeter
from pipeline.embeddings.build import embed_texts
from pipeline.embeddings.embedder import find_embedder, load_embedder
from pipeline.specialists.domain_weights import Assignment, assign_to_domains
from pipeline.specialists.held_out import generic_evaluation, held_out_sets
from pipeline.specialists.sets import SpecialistSet, set_of_texts
from pipeline.tokenizer import TextTokenizer, load_tokenizer
from soe_model.specialists.evaluation import window_losses
from soe_model.training.trainer import SoupTrainer
from storage_schema.domains import DomainStore
from storage_schema.layout import store_folder
from storage_schema.manifest import read_manifest
from storage_schema.tree import Tree
from tests.benchmarks.worth.kinds import FAR, NEAR

GENERIC = "generic"
METHODS = "blended", "nearest-centroids", "generic"
"""The default specialist, Algorithm 3's, and the instance of the generic mixture."""
WINDOWS = 32
"""Of each set that are measured; eight times as many of the generic mixture."""
TEXTS, PASSAGES, MOST_SETS = 100, 50, 60


@dataclass(frozen=True)
class Sets:
    """The specialist sets of a store, placed among its domains once."""

    sets: list[SpecialistSet]
    """Without ``GENERIC``, which has no texts."""
    assignments: list[Assignment]
    evaluation: dict[str, torch.Tensor]
    """Set, and ``GENERIC``, → int64 [n, L + 1]."""
    generic_K: np.ndarray
    tokenizer: TextTokenizer
    embedder: Any
    tree: Tree
    given: frozenset[str] = frozenset()
    """Those of texts of one's own."""

    @property
    def parts(self) -> dict[str, str]:
        """Set → seen (documents kept out of a source that is trained on), near, far, unseen (any other) or generic."""
        return {one.name: self._part(one) for one in self.sets} | {GENERIC: GENERIC}

    def _part(self, one: SpecialistSet) -> str:
        if one.name in NEAR:
            return "near"
        if one.name in FAR or one.name in self.given:
            return "far"
        return "unseen" if one.unseen_source else "seen"

    def assign(self, texts: Any) -> Assignment:
        return assign_to_domains(embed_texts(self.embedder, texts), self.tree)


def load_sets(
    store: str, sequence_length: int, *, most: int = MOST_SETS, texts: Mapping[str, str] | None = None
) -> Sets:
    """The held-out sources of a store and its generic mixture, and the sets of `texts`: name → file or folder."""
    folder = store_folder(store)
    tree = DomainStore(folder).tree
    made_with = read_manifest(folder / "embeddings", "embeddings").configuration
    embedder = load_embedder(
        find_embedder(made_with["embedder"], made_with["revision"]),
        max_seq_length=made_with["max_seq_length"],
    )
    tokenizer = load_tokenizer(folder / "tokenizer" / "tokenizer.json")

    def windows(texts: list[str], most: int) -> torch.Tensor:
        rows = torch.from_numpy(tokenizer.encode_windows(texts, sequence_length))
        return rows[torch.linspace(0, len(rows) - 1, min(most, len(rows))).long()]

    found = held_out_sets(folder, max_texts=TEXTS, evaluation_passages=PASSAGES, max_sets=most)
    texts = texts or {}
    found += [
        set_of_texts(name, path, max_texts=TEXTS, evaluation_passages=PASSAGES)
        for name, path in texts.items()
    ]
    evaluation = {one.name: windows(one.evaluation, WINDOWS) for one in found}
    evaluation[GENERIC] = windows(generic_evaluation(folder, passages=8 * WINDOWS), 8 * WINDOWS)
    assignments = [assign_to_domains(embed_texts(embedder, one.texts), tree) for one in found]
    sets = [replace(one, evaluation=[]) for one in found]
    given = frozenset(texts)
    return Sets(sets, assignments, evaluation, tree.generic_weights, tokenizer, embedder, tree, given)


def losses(trainer: SoupTrainer, sets: Sets) -> dict[str, dict[str, Any]]:
    """Set → each of METHODS → the loss on each of its windows, nats per token; and ``share``, which `blended` chose.

    A twin has one instance, so all three are its.
    """
    generic_1K = torch.from_numpy(sets.generic_K).float()[None]
    if not trainer.soup.num_experts:
        own = _of(trainer, generic_1K, [*sets.evaluation.values()], shared=True)
        return {name: dict.fromkeys(METHODS, row) for name, row in zip(sets.evaluation, own, strict=True)}
    blended_WK, said = blended_weights(_Meter(trainer, sets), sets.sets, sets.assignments, sets.assign)
    found = {GENERIC: dict.fromkeys(METHODS, _of(trainer, generic_1K, [sets.evaluation[GENERIC]])[0])}
    for one, assignment, blended_K, how in zip(sets.sets, sets.assignments, blended_WK, said, strict=True):
        rows = torch.from_numpy(np.stack([blended_K, assignment.domain_weights])).float()
        rows_WK = torch.cat([rows, generic_1K])
        measured = _of(trainer, rows_WK, 3 * [sets.evaluation[one.name]])
        found[one.name] = dict(zip(METHODS, measured, strict=True)) | {"share": how["blend"]["share"]}
    return found


def _of(
    trainer: SoupTrainer, rows_WK: torch.Tensor, windows: list[torch.Tensor], *, shared: bool = False
) -> list[list[float]]:
    """The losses on each window of each set under its instance, or under the one that all share."""
    instances = [*trainer.instantiate(rows_WK)]
    found = []
    for at, windows_nL1 in enumerate(windows):
        trainer.backbone.params_P.copy_(instances[0 if shared else at])
        found.append(
            [round(loss, 5) for loss in window_losses(trainer.backbone.module, windows_nL1).tolist()]
        )
    return found


class _Meter(LossMeter):
    """The product's meter over a trainer that has not written its soup yet."""

    def __init__(self, trainer: SoupTrainer, sets: Sets):
        super().__init__(_Unwritten(trainer, sets.generic_K))
        self.tokenizer, self._length = sets.tokenizer, trainer.training.sequence_length

    @property
    def length(self) -> int:
        return self._length


@dataclass(frozen=True)
class _Unwritten:
    """What of a soup its meter asks for (soe_model/files/soup.py)."""

    trainer: SoupTrainer
    generic_weights: np.ndarray

    @property
    def bank(self) -> Any:
        return self.trainer.sharding

    @torch.no_grad()
    def coefficients(self, weights_WK: torch.Tensor) -> torch.Tensor:
        return self.trainer.router.module(weights_WK.float())

    @torch.no_grad()
    def instances(self, coefficients_WN: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        return out.copy_(self.trainer.bank.instances(coefficients_WN))

    def model(self, instance_P: torch.Tensor) -> torch.nn.Module:
        return self.attach(self.trainer.backbone.module, instance_P)

    def attach(self, model: torch.nn.Module, instance_P: torch.Tensor) -> torch.nn.Module:
        self.trainer.backbone.params_P.copy_(instance_P)
        return model
