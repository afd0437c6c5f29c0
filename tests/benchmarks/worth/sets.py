"""The sets that runs are measured on, and an unfinished run measured on them as `soe specialize` measures a soup.

Legend: W instances, K domains, N experts, P parameters of an instance, n windows, L tokens in a window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from flows.specialists import coefficients
from flows.specialists.blend import blended_weights
from flows.specialists.losses import LossMeter
from pipeline.embeddings.build import embed_texts
from pipeline.embeddings.embedder import find_embedder, load_embedder
from pipeline.specialists.domain_weights import Assignment, assign_to_domains
from pipeline.specialists.held_out import generic_evaluation, held_out_sets
from pipeline.specialists.sets import SpecialistSet, set_of_texts
from pipeline.tokenizer import TextTokenizer, load_tokenizer
from soe_model.files.soup import SoupOfExperts
from soe_model.files.write_soup import soup_of_trainer
from soe_model.specialists.evaluation import window_losses
from soe_model.specialists.refining import REFINED
from soe_model.training.trainer import SoupTrainer
from storage_schema.domains import DomainStore
from storage_schema.layout import store_folder
from storage_schema.manifest import read_manifest
from storage_schema.tree import Tree
from tests.benchmarks.worth.kinds import FAR, NEAR

GENERIC = "generic"
METHODS = "blended", "nearest-centroids", "generic"
"""Specialists that only choose domain weights, and the instance of the generic mixture."""
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


def losses(trainer: SoupTrainer, sets: Sets, *, refined: bool = False) -> dict[str, dict[str, Any]]:
    """Set → each of METHODS → the loss on each of its windows, nats per token; and ``share``, which `blended` chose.

    A twin has one instance, so all are its.

    Args:
        refined: REFINED is measured too (and ``steps`` are those that it took); it takes seconds for each set.
    """
    methods = (*METHODS, REFINED) if refined else METHODS
    if not trainer.soup.num_experts:
        [instance_P] = trainer.instantiate(torch.from_numpy(sets.generic_K).float()[None])
        trainer.backbone.params_P.copy_(instance_P)
        rows = {
            name: window_losses(trainer.backbone.module, windows) for name, windows in sets.evaluation.items()
        }
        return {name: dict.fromkeys(methods, _rounded(row_n)) for name, row_n in rows.items()}
    with TemporaryDirectory() as folder:
        tokenizer = Path(folder, "tokenizer.json")
        sets.tokenizer.tokenizer.save(str(tokenizer))
        soup = soup_of_trainer(Path(folder, "soup"), trainer, tree=sets.tree, tokenizer=tokenizer)
        return _of_soup(soup, sets, methods)


def _of_soup(soup: SoupOfExperts, sets: Sets, methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    meter = LossMeter(soup)
    start = coefficients.from_weights(soup, *blended_weights(meter, sets.sets, sets.assignments, sets.assign))
    last = coefficients.refined(meter, sets.sets, sets.assignments, start) if REFINED in methods else start
    plain = coefficients.from_weights(soup, np.stack([one.domain_weights for one in sets.assignments]))
    [generic_n] = meter.losses(meter.generic_N[None], sets.evaluation[GENERIC])
    found = {GENERIC: dict.fromkeys(methods, _rounded(generic_n))}
    for w, one in enumerate(sets.sets):
        rows = [start.coefficients_WN[w], plain.coefficients_WN[w], meter.generic_N]
        measured: dict[str, Any] = {"share": last.said[w]["blend"]["share"]}
        if REFINED in methods:
            rows.append(last.coefficients_WN[w])
            measured["steps"] = last.said[w]["refined"]["steps"]
        rows_Wn = meter.losses(torch.stack(rows), sets.evaluation[one.name])
        found[one.name] = dict(zip(methods, map(_rounded, rows_Wn), strict=True)) | measured
    return found


def _rounded(losses_n: torch.Tensor) -> list[float]:
    return [round(loss, 5) for loss in losses_n.tolist()]
