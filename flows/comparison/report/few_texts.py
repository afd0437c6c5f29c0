"""How the loss of a specialist falls with the number of texts that it is made of (the paper's figure 7, right).

A soup needs no training for other texts: only the domain weights change, and they are what few texts estimate badly. So
its models of the weights of few texts are measured. A generic model is the same for any texts; CRISP would train anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from statistics import fmean
from typing import Any

import torch

from flows.comparison.further import FURTHER, Question
from flows.comparison.report.by_number import SOUP, chart, flat, labels_of, spread
from flows.comparison.sets import MeasuredSet, targets

TEXTS = "few-texts"
GENERIC, FLAT = "generic", ("generic", "crisp")
"""FLAT: shown beside, at the loss that they have with all texts."""
MOST_OF = 0.9
"""Of what all texts gain."""


def question(sets: Sequence[MeasuredSet]) -> Question | None:
    """Each set's loss under the models of few of its texts; None where no set has weights of few."""
    weights: list[torch.Tensor] = []
    rows = {}
    for one in targets(list(sets)):
        first = len(weights)
        weights += [weights_K for drawn in one.few_texts.values() for weights_K in drawn]
        if one.few_texts:
            rows[one.name] = list(range(first, len(weights)))
    return Question(weights_MK=torch.stack(weights), rows=rows) if rows else None


def collect_few_texts(
    cells: Sequence[Mapping[str, Any]], sets: Sequence[MeasuredSet]
) -> dict[str, Any] | None:
    """The mean loss over the sets by the number of texts; None where nothing was measured.

    A number of texts counts that every set has more than; the last is that of all texts, on average.
    """
    measured, numbers = targets(list(sets)), counted(sets)
    asked = [cell for cell in cells if TEXTS in cell.get(FURTHER, {})]
    if not numbers or not asked:
        return None
    everything = round(sum(one.texts for one in measured) / len(measured))
    names = [one.name for one in measured]
    curves = {}
    for label in labels_of(asked):
        of_label = [cell for cell in asked if cell["method"] == label]
        few = {
            number: spread(loss for cell in of_label for loss in by_draw(cell, measured, number))
            for number in numbers
        }
        [of_all] = flat(cells, [label], names).values()
        curves[label] = [{"at": number} | loss for number, loss in {**few, everything: of_all}.items()]
    return chart(
        "Loss by the number of texts",
        "Of models whose domain weights are those of as few texts of each set, made without training; mean over the "
        "sets, ± over seeds and draws of the texts. Dotted: methods that do not follow the weights, with all texts.",
        "texts",
        curves,
        flat(cells, FLAT, names),
    )


def counted(sets: Sequence[MeasuredSet]) -> list[int]:
    """The numbers of texts that every set has more than, ascending."""
    measured = targets(list(sets))
    return [n for n in measured[0].few_texts if all(n in one.few_texts for one in measured)]


def by_draw(cell: Mapping[str, Any], sets: Sequence[MeasuredSet], number: int) -> list[float]:
    """The mean over the sets for each draw of so many texts; not a number where a loss was not finite."""
    of_sets = []
    for one in sets:
        first = sum(len(drawn) for few, drawn in one.few_texts.items() if few < number)
        losses = cell[FURTHER][TEXTS][one.name][first : first + len(one.few_texts[number])]
        of_sets.append([nan if loss is None else loss for loss in losses])
    draws = min(map(len, of_sets))
    return [fmean(losses[draw] for losses in of_sets) for draw in range(draws)]


def answer(found: Mapping[str, Any]) -> str:
    """One sentence: what few texts are worth to a soup, or else to the first of the methods."""
    label, curve = next(iter(found["curves"].items()))
    whose = "a soup" if label == SOUP else label
    known = [point for point in curve if point["mean"] is not None]
    said = ", ".join(f"{point['mean']:.3f} with {point['at']:,}" for point in known)
    words = f"By the number of texts, the mean loss of {whose} is {said}"
    if GENERIC not in found["flat"] or len(known) < 2:
        return f"{words}."
    generic = found["flat"][GENERIC]["mean"]
    gain = generic - known[-1]["mean"]
    if gain <= 0:
        return f"{words}: not with all of them is it below the generic model's ({generic:.3f})."
    equal, most = (
        next(point["at"] for point in known if generic - point["mean"] >= share * gain)
        for share in (0.0, MOST_OF)
    )
    return (
        f"{words}: it is as good as the generic model ({generic:.3f}) with {equal:,}, and has {MOST_OF:.0%} of what "
        f"all of them gain with {most:,}."
    )
