"""The sets that runs are measured on, and an unfinished run measured on them as `soe specialize` measures a soup.

Legend: W instances, K domains, N experts, P parameters of an instance, n windows, L tokens in a window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from flows.specialists.blend import blended_weights
from flows.specialists.losses import LossMeter
from flows.specialists.refine import refined_coefficients
from pipeline.embeddings.build import embed_texts
from pipeline.embeddings.embedder import find_embedder, load_embedder
from pipeline.specialists.domain_weights import Assignment, assign_to_domains
from pipeline.specialists.held_out import generic_evaluation, held_out_sets
from pipeline.specialists.sets import SpecialistSet, set_of_texts
from pipeline.tokenizer import TextTokenizer, load_tokenizer
from soe_model.files.soup import SoupOfExperts
from soe_model.files.write_soup import write_soup
from soe_model.specialists.evaluation import window_losses
from soe_model.specialists.refining import REFINED
from soe_model.training.trainer import SoupTrainer
from storage_schema.domains import DomainStore
from storage_schema.layout import store_folder
from storage_schema.manifest import read_manifest
from storage_schema.stage import open_stage
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
        return _of_soup(_written(trainer, sets, Path(folder)), sets, methods)


def _written(trainer: SoupTrainer, sets: Sets, folder: Path) -> SoupOfExperts:
    """The soup as a run would write it at its end."""
    sets.tokenizer.tokenizer.save(str(folder / "tokenizer.json"))
    of_training = {"sequence_length": trainer.training.sequence_length}
    described = {"soup": asdict(trainer.soup), "training": of_training}
    stage = open_stage(folder / "soup", kind="soup", configuration=described, inputs={})
    write_soup(stage.work, trainer, tree=sets.tree, tokenizer=folder / "tokenizer.json")
    stage.finish({})
    return SoupOfExperts.open(stage.folder)


def _of_soup(soup: SoupOfExperts, sets: Sets, methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    meter = LossMeter(soup)
    blended_WK, said = blended_weights(meter, sets.sets, sets.assignments, sets.assign)
    [generic_n] = meter.losses(meter.generic_N[None], sets.evaluation[GENERIC])
    found = {GENERIC: dict.fromkeys(methods, _rounded(generic_n))}
    for one, assignment, blended_K, how in zip(sets.sets, sets.assignments, blended_WK, said, strict=True):
        rows_WK = torch.from_numpy(np.stack([blended_K, assignment.domain_weights])).float()
        rows_WN = torch.cat([soup.coefficients(rows_WK), meter.generic_N[None]])
        measured: dict[str, Any] = {"share": how["blend"]["share"]}
        if REFINED in methods:
            refined_N, steps = refined_coefficients(meter, one, assignment, rows_WN[0], measured["share"])
            rows_WN = torch.cat([rows_WN, refined_N[None]])
            measured["steps"] = steps["refined"]["steps"]
        rows_Wn = meter.losses(rows_WN, sets.evaluation[one.name])
        found[one.name] = dict(zip(methods, map(_rounded, rows_Wn), strict=True)) | measured
    return found


def _rounded(losses_n: torch.Tensor) -> list[float]:
    return [round(loss, 5) for loss in losses_n.tolist()]
