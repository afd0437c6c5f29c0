"""The sets of a comparison: what each is like (domain weights), and the text that it is measured on, as windows.

<folder>/sets.json, windows.safetensors

Legend: W sets, K domains, n windows, L tokens in a window.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from storage_schema.json_files import read_object
from storage_schema.manifest import write_atomically

GENERIC = "generic mixture"
CHOOSING, EVALUATION = "choosing", "evaluation"
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
    document_n: Sequence[int] | None = None
    """Of each window to choose by the number of the document that it predicts first; None: not known. Not on disk."""


def targets(sets: list[MeasuredSet]) -> list[MeasuredSet]:
    """The sets that specialists are made for."""
    return [one for one in sets if one.kind != "generic"]


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
