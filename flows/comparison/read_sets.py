"""The texts of a comparison's sets, read, placed among the domains and cut into windows.

Legend: W sets, K domains, n windows, L tokens in a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from flows.comparison.sets import GENERIC, MeasuredSet, save_sets
from flows.reporting.progress import progress
from flows.settings import CompareMethods
from pipeline.embeddings.build import embed_texts
from pipeline.embeddings.embedder import reload_embedder
from pipeline.mixtures.meta_distributions import on_windows, window_shares
from pipeline.specialists.domain_weights import Assignment, assign_to_domains
from pipeline.specialists.folds import documents_of_windows
from pipeline.specialists.held_out import generic_evaluation, held_out_sets
from pipeline.specialists.sets import SpecialistSet, check_names, set_of_texts
from pipeline.tokenizer import TextTokenizer, load_tokenizer
from storage_schema.domains import DomainStore
from storage_schema.errors import UserError
from storage_schema.manifest import read_manifest
from storage_schema.stage import Stage

KIND = "comparison-sets"
FEW, DRAWS = (1, 3, 10, 100, 1000), 3
"""Numbers of texts of which a set has domain weights too, and how many draws of as many."""


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


def read_again(
    settings: CompareMethods, store: DomainStore, measured: Sequence[MeasuredSet]
) -> list[SpecialistSet]:
    """The texts of the sets, without those that they are measured on.

    Raises ValueError where they are others by now than those that the sets' windows were cut from.
    """
    tokenizer = load_tokenizer(store.folder.parent / "tokenizer")
    found = {one.name: one for one in read_sets(settings, store)}
    for one in measured:
        texts, length = found[one.name].texts if one.name in found else [], one.choosing_nL1.shape[1] - 1
        if tokenizer.encode_windows(texts, length).tolist() != one.choosing_nL1.tolist():
            raise UserError(
                f"the texts of the set {one.name!r} are no longer those that the comparison began with, which "
                "fine-tuning and specialists need: put them back, or give the comparison another name."
            )
    return [replace(found[one.name], evaluation=[]) for one in measured]


def with_documents(
    settings: CompareMethods, store: DomainStore, sets: Sequence[MeasuredSet]
) -> list[MeasuredSet]:
    """The sets with `document_n`; errors as :func:`read_again`."""
    tokenizer = load_tokenizer(store.folder.parent / "tokenizer")
    measured = {one.name: one for one in sets if one.kind != "generic"}
    found = {}
    for one in read_again(settings, store, [*measured.values()]):
        number, length = len(measured[one.name].choosing_nL1), measured[one.name].choosing_nL1.shape[1] - 1
        tokens = [len(ids) for ids in tokenizer.encode(one.texts)]
        found[one.name] = documents_of_windows(tokens, one.documents, number, length).tolist()
    return [replace(one, document_n=found.get(one.name)) for one in sets]


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
            num_volumes=len(store.volumes),
        )
    if not found:
        raise UserError(
            'there is no set to measure on: set held_out, or name some, texts={"notes": "/data/notes"}.'
        )
    check_names(found)
    return found


def _windows(tokenizer: TextTokenizer, texts: list[str], length: int, name: str) -> torch.Tensor:
    windows_nL1 = torch.from_numpy(tokenizer.encode_windows(texts, length))
    if not len(windows_nL1):
        raise UserError(
            f"the texts of the set {name!r} fill no window of {length} tokens: give more of them (more "
            "evaluation_passages), or a shorter sequence_length."
        )
    return windows_nL1
