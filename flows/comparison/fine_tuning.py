"""Models fine-tuned on more and more text of the sets (the paper's Figure 6): measured, collected, and said in words.

A model learns from the texts that its method may see, with early stopping by a fifth of them, of other documents, as
`specialize` does with its method fine-tuned; it is measured on the others.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from flows.comparison.sets import MeasuredSet, targets
from flows.comparison.spread import spread
from pipeline.specialists.folds import in_turn
from soe_model.methods.flat import FlatMethod
from soe_model.methods.method import Instance
from soe_model.specialists.coefficient_learning import Learning, two_sides
from soe_model.specialists.fine_tuning import LEARNING_RATE
from storage_schema.errors import UserError
from storage_schema.json_files import read_object
from storage_schema.manifest import write_atomically

LEARNING = Learning(learning_rate=LEARNING_RATE, steps=400)
"""With 100 steps none of 72 fine-tunings had ended."""
BACKWARD = 3
"""A step's passes, forward and backward, in forward passes."""
NOT_ONE = "it is not one model"


def fine_tuned(
    method: FlatMethod,
    instances: Sequence[Instance],
    sets: list[MeasuredSet],
    tokens: Sequence[int],
    *,
    seed: int,
    kept: Path,
) -> dict[str, Any]:
    """The losses of each window after each number of tokens: ``points``, or ``said``, why there are none.

    A set that has less text gives all of it; one of a single window is left out.

    Args:
        instances: of :func:`targets`, in their order.
        tokens: of each set, ascending.
        kept: a file for what is done, from which a run that was cut off goes on.
    """
    if method.routed:
        return {"said": NOT_ONE, "points": []}
    found: dict[str, dict[str, Any]] = read_object(kept) if kept.exists() else {}
    points = []
    try:
        for number in tokens:
            point: dict[str, Any] = {"tokens": number, "sets": {}}
            for one, instance in zip(targets(sets), instances, strict=False):
                rows = _rows(one, number)
                if len(rows) > 1:
                    name = f"{len(rows)} windows of {one.name}"
                    if name not in found:
                        found[name] = _after(method, instance, one, rows, seed)
                        write_atomically(kept, json.dumps(found))
                    point["sets"][one.name] = found[name]
            points.append(point)
    except UserError as error:
        return {"said": str(error), "points": []}
    return {"said": "", "points": points}


def _rows(one: MeasuredSet, tokens: int) -> list[int]:
    """Rows of a set's windows, of so many tokens: one of each document, then another of each. Two at least, as one of
    them says when to stop.
    """
    number = max(2, tokens // (one.choosing_nL1.shape[1] - 1))
    if one.document_n is None:
        return list(range(len(one.choosing_nL1)))[:number]
    members: dict[int, list[int]] = {}
    for row, document in enumerate(one.document_n):
        members.setdefault(document, []).append(row)
    documents = [*members.values()]
    turns = in_turn([len(rows) for rows in documents])
    return sorted(documents[document][row] for document, row in turns[:number])


def _after(
    method: FlatMethod, instance: Instance, one: MeasuredSet, rows: list[int], seed: int
) -> dict[str, Any]:
    windows_nL1 = one.choosing_nL1[rows]
    documents = None if one.document_n is None else [one.document_n[row] for row in rows]
    sides = two_sides(windows_nL1, documents)
    tuned, learned = method.fine_tune(instance, *sides, replace(LEARNING, seed=seed))
    losses = method.loss(tuned, one.evaluation_nL1).tolist()
    if not all(map(math.isfinite, losses)):
        raise UserError(f"after fine-tuning on {one.name} its loss is not finite.")
    return {
        "tokens": windows_nL1[:, 1:].numel(),
        "steps": learned.steps,
        "best_step": learned.best_step,
        "window_losses": losses,
    }


def windows_read(method: FlatMethod, sets: list[MeasuredSet], tokens: Sequence[int]) -> float:
    """About how many windows pass forward through a model in :func:`fine_tuned`, if none stops early."""
    if method.routed:
        return 0.0
    read = 0.0
    for one in targets(sets):
        for windows in {len(_rows(one, number)) for number in tokens}:
            looks = 1 + LEARNING.steps // LEARNING.check_every
            read += BACKWARD * LEARNING.steps * min(LEARNING.batch_size, windows)
            read += looks * math.ceil(windows / 5) + len(one.evaluation_nL1)
    return read


def curve_of(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Of a method's finished cells: mean loss by tokens of each set, from 0 on; or why there is none."""
    tuned = [(cell, cell["fine_tuned"]) for cell in cells if cell.get("fine_tuned")]
    said = next((of_cell["said"] for _, of_cell in tuned if of_cell["said"]), "")
    if said or not tuned or not tuned[0][1]["points"][0]["sets"]:
        return {"said": said, "curve": []}
    names = list(tuned[0][1]["points"][0]["sets"])
    before = [fmean(cell["points"][-1]["losses"][name] for name in names) for cell, _ in tuned]
    curve = [{"tokens": 0, "loss": spread(before)}]
    for number, point in enumerate(tuned[0][1]["points"]):
        after = [list(_means(of_cell["points"][number], names)) for _, of_cell in tuned]
        read = fmean(point["sets"][name]["tokens"] for name in names)
        curve.append({"tokens": round(read), "loss": spread(list(map(fmean, after)))})
    return {"said": "", "curve": curve}


def _means(point: dict[str, Any], names: list[str]) -> Iterator[float]:
    return (fmean(point["sets"][name]["window_losses"]) for name in names)


def in_words(rows: list[dict[str, Any]]) -> list[str]:
    """Which method is best after fine-tuning, and how much of it brings the generic model to the soup. Empty: none."""
    curves = {row["method"]: row["fine_tuning"]["curve"] for row in rows if row.get("fine_tuning")}
    curves = {method: curve for method, curve in curves.items() if curve}
    if not curves:
        return []
    by_loss = sorted(curves, key=lambda method: curves[method][-1]["loss"]["mean"])
    first = curves[by_loss[0]][-1]
    words = (
        f"After fine-tuning on {first['tokens']:,} tokens of each set the lowest mean loss is that of {by_loss[0]} "
        f"({first['loss']['mean']:.3f}; {curves[by_loss[0]][0]['loss']['mean']:.3f} before)"
    )
    if len(by_loss) > 1:
        words += f", then {by_loss[1]} ({curves[by_loss[1]][-1]['loss']['mean']:.3f})"
    lines = [words + "."]
    if "soup" in curves and "generic" in curves:
        lines.append(_to_reach_the_soup(curves["soup"][0]["loss"]["mean"], curves["generic"]))
    without = {
        row["method"]: row["fine_tuning"]["said"] for row in rows if row.get("fine_tuning", {}).get("said")
    }
    return lines + [
        f"{method} has no losses after fine-tuning: {said.removesuffix('.')}."
        for method, said in without.items()
    ]


def _to_reach_the_soup(loss: float, generic: list[dict[str, Any]]) -> str:
    reached = [point["tokens"] for point in generic if point["loss"]["mean"] <= loss]
    if reached:
        return (
            f"generic reaches the loss of the soup before its fine-tuning ({loss:.3f}) with {reached[0]:,} tokens of "
            "each set, of the numbers that were tried."
        )
    return (
        f"generic does not reach the loss of the soup before its fine-tuning ({loss:.3f}) with "
        f"{generic[-1]['tokens']:,} tokens of each set."
    )
