"""What the cells say together: a row for each method, and the answer in words."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable
from statistics import fmean
from typing import Any

from flows.comparison import fine_tuning
from flows.comparison.contenders import is_mixture
from flows.comparison.measuring import FINISHED
from flows.comparison.report.seeds import below
from flows.comparison.sets import KINDS, MeasuredSet, targets
from flows.comparison.spread import spread
from flows.settings import CompareMethods

SOUP, CRISP = "soup", "crisp"
NAMED = SOUP, f"{SOUP}-refined", "generic"
"""Said of each kind of sets, wherever they stand."""
LARGER = 1.1
"""So many times as large as the smallest model that is served, variants aside, or as small: then the answer says so."""


def collect(
    settings: CompareMethods,
    sets: list[MeasuredSet],
    cells: list[dict[str, Any]],
    *,
    tokens: int,
    digest: str,
) -> dict[str, Any]:
    """All that the page shows, with the raw losses of the cells.

    Args:
        settings: those of_size.
        tokens: of each method and seed.
        digest: of the store's domains.
    """
    labels = list(dict.fromkeys(cell["method"] for cell in cells if not is_mixture(cell["method"])))
    rows = [_row(label, [cell for cell in cells if cell["method"] == label], sets) for label in labels]
    return {
        "name": settings.name.rpartition("/")[2],
        "store": settings.store,
        "digest": digest,
        "preset": settings.preset,
        "seeds": settings.seeds,
        "tokens": tokens,
        "sets": [
            {
                "name": one.name,
                "kind": one.kind,
                "windows": len(one.evaluation_nL1),
                "notes": list(one.notes),
            }
            for one in sets
        ],
        "rows": rows,
        "answer": answer(rows, sets),
        "fine_tuning": fine_tuning.in_words(rows),
        "repeat": repeat(settings, tokens),
        "cells": cells,
    }


def _row(label: str, cells: list[dict[str, Any]], sets: list[MeasuredSet]) -> dict[str, Any]:
    done = [cell for cell in cells if cell["status"] == FINISHED]
    row: dict[str, Any] = {
        "method": label,
        "seeds": len(done),
        "notes": [
            f"seed {cell['seed']}: {cell['status']}: {cell['said']}" for cell in cells if cell not in done
        ],
    }
    if not done:
        return row
    cost = done[0]["cost"]
    row["losses"] = {
        kind: (spread(list(found.values())) or {}) | {"by_seed": found}
        for kind in KINDS
        if (found := _by_seed(done, [one for one in sets if one.kind == kind]))
    }
    row["by_set"] = {
        one.name: spread([_mean_of(cell, [one]) for cell in done])
        for one in sets
        if one.name in done[0]["points"][-1]["losses"]
    }
    row["curve"] = [
        {
            "tokens": done[0]["points"][point]["tokens"],
            "seconds": fmean(cell["points"][point]["seconds"] for cell in done),
            "loss": spread([_mean_of(cell, targets(sets), point) for cell in done]),
        }
        for point in range(len(done[0]["points"]))
    ]
    row["fine_tuning"] = fine_tuning.curve_of(done)
    return row | {
        "anew": done[0]["anew"],
        "tokens": done[0]["points"][-1]["tokens"],
        "flops": done[0]["all_flops"],
        "once_flops": cost["pretraining_flops"],
        "specialist_flops": cost["specialist_flops"],
        "seconds": fmean(cell["points"][-1]["seconds"] for cell in done),
        "seconds_to_specialist": fmean(cell["seconds_to_specialist"] for cell in done),
        "stored": cost["pretrained_size"] or cost["specialist_size"],
        "served": cost["specialist_size"],
        "active": cost.get("active_size"),
        "seconds_per_token": fmean(cell["seconds_per_token"] for cell in done),
    }


def _by_seed(done: list[dict[str, Any]], sets: list[MeasuredSet]) -> dict[int, float]:
    means = {cell["seed"]: _mean_of(cell, sets) for cell in done}
    return {seed: mean for seed, mean in means.items() if mean is not None}


def _mean_of(cell: dict[str, Any], sets: Iterable[MeasuredSet], point: int = -1) -> float | None:
    """The mean of the losses of some sets; None unless all were measured."""
    losses = cell["points"][point]["losses"]
    found = [losses.get(one.name) for one in sets]
    return None if not found or None in found else fmean(found)


def answer(rows: list[dict[str, Any]], sets: list[MeasuredSet]) -> list[str]:
    """A few sentences: which method is best on which sets, and from how many specialists on a soup costs less."""
    measured = [row for row in rows if row.get("losses")]
    if not measured:
        return ["No method was trained to its end: see what each says below."]
    lines = []
    for kind in KINDS[:3]:
        number = sum(one.kind == kind for one in sets)
        ranked = sorted(
            (row for row in measured if row["losses"].get(kind)), key=lambda row: row["losses"][kind]["mean"]
        )
        if ranked:
            lines.append(_ranking(kind, number, ranked))
    by_label = {row["method"]: row for row in measured}
    if SOUP in by_label and CRISP in by_label:
        lines.append(_from_how_many(by_label[SOUP], by_label[CRISP]))
    seeds = min(row["seeds"] for row in measured)
    if seeds < 3:
        lines.append(f"With {seeds} seed{'s' * (seeds > 1)} for a method, small differences say nothing.")
    return lines


def _ranking(kind: str, number: int, ranked: list[dict[str, Any]]) -> str:
    plain = [row for row in ranked if ":" not in row["method"]] or ranked
    least = min(row["served"] for row in plain)
    most_seeds = max(row["seeds"] for row in ranked)

    def said(row: dict[str, Any]) -> str:
        loss = row["losses"][kind]
        around = "" if loss["sd"] is None else f" ± {loss['sd']:.3f}"
        larger = row["served"] / least
        size = f", {larger:.1f} times the parameters" if not 1 / LARGER < larger < LARGER else ""
        seeds = f", of {row['seeds']} seeds only" if row["seeds"] < most_seeds else ""
        return f"{row['method']} ({loss['mean']:.3f}{around}{size}{seeds})"

    first = ranked[0]
    words = f"On {number} {kind} set{'s' * (number > 1)} the lowest mean loss is that of {said(first)}"
    others = [row for row in ranked[1:] if _bank(row) != _bank(first)]
    if others:
        second = others[0]
        words += f", then {said(second)}"
        if not below("", "", *(row["losses"][kind]["by_seed"] for row in (first, second))).holds:
            words += ", which the seeds do not tell apart"
    named = [row for row in ranked[1:] if row["method"] in NAMED and row not in others[:1]]
    if named:
        words += "; " + ", ".join(map(said, named))
    return words + "."


def _bank(row: dict[str, Any]) -> str:
    """What its models are made of: those of a soup as `specialize` makes them are of the same as the soup's."""
    return str(row["method"]).replace(f"{SOUP}-blended", SOUP).replace(f"{SOUP}-refined", SOUP)


def _from_how_many(soup: dict[str, Any], crisp: dict[str, Any]) -> str:
    """From how many specialists on a soup costs less than CRISP, and what its models are worth beside those."""
    number = _break_even(soup, crisp["specialist_flops"])
    apart = [
        f"{soup['losses'][kind]['mean'] - crisp['losses'][kind]['mean']:+.3f} on {kind} sets"
        for kind in KINDS
        if kind in soup["losses"] and kind in crisp["losses"]
    ]
    then = f" The loss of its models minus that of CRISP's: {', '.join(apart)}." if apart else ""
    if number is None:
        return "With as many tokens for each of its trainings as a soup has, CRISP never costs more." + then
    return (
        f"With more than {number:,} specialist{'s' * (number > 1)} a soup costs less than CRISP: it is pretrained once "
        f"({soup['once_flops']:.2g} FLOPs), CRISP for each ({crisp['specialist_flops']:.2g})." + then
    )


def _break_even(soup: dict[str, Any], flops_each: float) -> int | None:
    """The number of specialists up to which training each alone, at this cost, is not dearer; None: always."""
    saved = flops_each - soup["specialist_flops"]
    return math.floor(soup["once_flops"] / saved) if saved > 0 else None


def repeat(settings: CompareMethods, tokens: int) -> str:
    """The command that makes the comparison again, with the same tokens on any machine."""
    values = settings.model_dump(mode="json", exclude_defaults=True, exclude={"hours", "name", "tokens"})
    values = {name: value for name, value in values.items() if value is not None} | {"tokens": tokens}
    import json

    chosen = json.dumps({"name": "again", **values})
    return shlex.join(
        ["prefect", "deployment", "run", "compare-methods", "--params", f'{{"config": {chosen}}}']
    )
