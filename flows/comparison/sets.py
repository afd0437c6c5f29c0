"""The sets of a comparison: what each is like (domain weights), and the text that it is measured on, as windows.

Legend: W sets, K domains, n windows, L tokens in a window.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from flows.reporting.progress import progress
from flows.settings import CompareMethods
from pipeline.embeddings.build import embed_texts
from pipeline.embeddings.embedder import reload_embedder
from pipeline.mixtures.meta_distributions import on_windows, window_shares
from pipeline.specialists.domain_weights import Assignment, assign_to_domains
from pipeline.specialists.held_out import generic_evaluation, held_out_sets
from pipeline.specialists.sets import SpecialistSet, set_of_texts
from pipeline.tokenizer import TextTokenizer, load_tokenizer
from storage_schema.domains import DomainStore
from storage_schema.errors import UserError
from storage_schema.json_files import read_object
from storage_schema.manifest import read_manifest, write_atomically
from storage_schema.stage import Stage

GENERIC = "generic mixture"
CHOOSING, EVALUATION = "choosing", "evaluation"
KIND = "comparison-sets"
FEW, DRAWS = (1, 3, 10, 100, 1000), 3
"""Numbers of texts of which a set has domain weights too, and how many draws of as many."""
KINDS = "seen", "unseen", "far", "generic"
"""Of a source that was trained on; of none that was; the same, and far from every domain; the mixture of all."""


@dataclass(frozen=True, kw_only=True)
class MeasuredSet:
    """One set, ready to be measured."""

    name: str
    kind: str
    """One of KINDS."""
    weights_K: torch.Tensor
    """float32; of its texts (Algorithm 3)."""
    choosing_nL1: torch.Tensor
    """Windows of the texts that a method may see."""
    evaluation_nL1: torch.Tensor
    """Windows of other texts."""
    texts: int = 0
    """That the weights are of; 0: not known."""
    few_texts: Mapping[int, torch.Tensor] = field(default_factory=dict)
    """Number of texts, less than all → the weights of as few, float32 [draws, K]."""
    notes: Sequence[str] = ()
    """What was passed over of its texts, and the like."""


def write_sets(stage: Stage, settings: CompareMethods, store: DomainStore, *, length: int) -> None:
    """Read the sets of the settings, place them among the domains and write their windows.

    Raises:
        ValueError: no set at all, or one without enough text.
    """
    found = read_sets(settings, store)
    for one in found:
        for note in one.notes:
            print(f"{one.name}: {note}", flush=True)
    tokenizer = load_tokenizer(store.folder.parent / "tokenizer")
    embedder = embedder_of(store)
    windows_K = store.windows_K(length)
    sets = []
    with progress("place the sets among the domains", "sets") as report:
        for number, one in enumerate(found, start=1):
            vectors_ND = embed_texts(embedder, one.texts)
            assignment = assign_to_domains(vectors_ND, store.tree)
            is_far = any(
                "far from every domain" in line for line in assignment.describe().get("warnings", [])
            )
            kind = "seen" if settings.held_out and one.name not in settings.texts else "unseen"
            if one.unseen_source:
                kind = "unseen"
            sets.append(
                MeasuredSet(
                    name=one.name,
                    kind="far" if is_far else kind,
                    weights_K=_weights(assignment, windows_K),
                    texts=len(one.texts),
                    few_texts=_of_few(vectors_ND, store, windows_K),
                    choosing_nL1=_windows(tokenizer, one.texts, length, one.name),
                    evaluation_nL1=_windows(tokenizer, one.evaluation, length, one.name),
                    notes=one.notes,
                )
            )
            report(number, len(found))
    texts = generic_evaluation(store.folder.parent, passages=8 * settings.evaluation_passages)
    if texts:
        half = len(texts) // 2
        sets.append(
            MeasuredSet(
                name=GENERIC,
                kind="generic",
                weights_K=torch.from_numpy(window_shares(windows_K)).float(),
                choosing_nL1=_windows(tokenizer, texts[:half] or texts, length, GENERIC),
                evaluation_nL1=_windows(tokenizer, texts[half:], length, GENERIC),
            )
        )
    save_sets(stage.work, sets)
    stage.finish({"sets": len(found), "windows": sum(len(one.evaluation_nL1) for one in sets)})


def weights_of(texts: Sequence[list[str]], store: DomainStore, length: int) -> list[torch.Tensor]:
    """The domain weights of each of these lists of texts (Algorithm 3), float32 [K]."""
    embedder, windows_K = embedder_of(store), store.windows_K(length)
    vectors = (embed_texts(embedder, some) for some in texts)
    return [_weights(assign_to_domains(vectors_ND, store.tree), windows_K) for vectors_ND in vectors]


def embedder_of(store: DomainStore) -> Any:
    """The model that the store's domains were made with."""
    made_with = read_manifest(store.folder.parent / "embeddings", "embeddings")
    return reload_embedder(made_with.configuration, made_with.inputs.get("model"))[1]


def _weights(assignment: Assignment, windows_K: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(on_windows(assignment.domain_weights, windows_K)).float()


def _of_few(vectors_ND: np.ndarray, store: DomainStore, windows_K: np.ndarray) -> dict[int, torch.Tensor]:
    """The weights of few of the texts, no text in two draws of as many."""
    found = {}
    for number in FEW:
        if number >= len(vectors_ND):
            break
        apart = len(vectors_ND) // number  # neighbours may be of one document
        drawn = [vectors_ND[draw::apart][:number] for draw in range(min(DRAWS, apart))]
        found[number] = torch.stack(
            [_weights(assign_to_domains(of_draw_ND, store.tree), windows_K) for of_draw_ND in drawn]
        )
    return found


def read_sets(settings: CompareMethods, store: DomainStore) -> list[SpecialistSet]:
    """The sets of the settings. Raises ValueError if there is none, or two of the same name."""
    found = [
        set_of_texts(
            name,
            path,
            max_texts=settings.max_texts,
            evaluation_passages=settings.evaluation_passages,
            text_field=settings.text_field,
            source_field=settings.source_field,
        )
        for name, path in settings.texts.items()
    ]
    if settings.held_out:
        found += held_out_sets(
            store.folder.parent,
            max_texts=settings.max_texts,
            evaluation_passages=settings.evaluation_passages,
            max_sets=settings.max_sets or 16,
        )
    names = [one.name for one in found]
    if not found:
        raise UserError(
            'there is no set to measure on: set held_out, or name some, texts={"notes": "/data/notes"}.'
        )
    if twice := {name for name in names if names.count(name) > 1} | ({GENERIC} & set(names)):
        raise UserError(f"two sets are named {sorted(twice)[0]!r}: give the one of `texts` another name.")
    return found


def _windows(tokenizer: TextTokenizer, texts: list[str], length: int, name: str) -> torch.Tensor:
    windows_nL1 = torch.from_numpy(tokenizer.encode_windows(texts, length))
    if not len(windows_nL1):
        raise UserError(
            f"the texts of the set {name!r} fill no window of {length} tokens: give more of them (more "
            "evaluation_passages), or a shorter sequence_length."
        )
    return windows_nL1


def save_sets(folder: Path, sets: list[MeasuredSet]) -> None:
    """Write sets.json and windows.safetensors."""
    tensors = {}
    rows: list[dict[str, Any]] = []
    for number, one in enumerate(sets):
        tensors[f"{number}.{CHOOSING}"] = one.choosing_nL1
        tensors[f"{number}.{EVALUATION}"] = one.evaluation_nL1
        rows.append(
            {
                "name": one.name,
                "kind": one.kind,
                "weights": _occurring(one.weights_K),
                "texts": one.texts,
                "notes": list(one.notes),
                "few_texts": {
                    str(number): [_occurring(weights_K) for weights_K in drawn]
                    for number, drawn in one.few_texts.items()
                },
            }
        )
    num_domains = len(sets[0].weights_K)
    save_file(tensors, folder / "windows.safetensors")
    write_atomically(folder / "sets.json", json.dumps({"num_domains": num_domains, "sets": rows}, indent=1))


def load_sets(folder: Path) -> list[MeasuredSet]:
    """The sets of a finished stage; the generic mixture, where there is one, is the last."""
    body, tensors = read_object(folder / "sets.json"), load_file(folder / "windows.safetensors")
    sets = []
    for number, row in enumerate(body["sets"]):
        sets.append(
            MeasuredSet(
                name=row["name"],
                kind=row["kind"],
                weights_K=_dense(row["weights"], body["num_domains"]),
                texts=row.get("texts", 0),
                notes=row.get("notes", []),
                few_texts={
                    int(texts): torch.stack([_dense(weights, body["num_domains"]) for weights in drawn])
                    for texts, drawn in row.get("few_texts", {}).items()
                },
                choosing_nL1=tensors[f"{number}.{CHOOSING}"],
                evaluation_nL1=tensors[f"{number}.{EVALUATION}"],
            )
        )
    return sets


def _occurring(weights_K: torch.Tensor) -> dict[str, float]:
    return {str(domain): float(weights_K[domain]) for domain in weights_K.nonzero()[:, 0].tolist()}


def _dense(weights: Mapping[str, float], num_domains: int) -> torch.Tensor:
    weights_K = torch.zeros(num_domains)
    for domain, weight in weights.items():
        weights_K[int(domain)] = weight
    return weights_K


def targets(sets: list[MeasuredSet]) -> list[MeasuredSet]:
    """The sets that specialists are made for."""
    return [one for one in sets if one.kind != "generic"]
