"""Charts of losses by a number, each with a sentence: of sets that one model is for, and of an option.

Their common form: title, words, what the number is, curves (label → points with `at`, `mean` and `sd` over seeds), and
losses that do not depend on the number (`flat`). That of the number of texts: few_texts.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import inf, isfinite, nan
from statistics import fmean, stdev
from typing import Any

import torch

from flows.comparison.contenders import COMMON
from flows.comparison.further import FURTHER, Question
from flows.comparison.report import seeds
from flows.comparison.report.seeds import Cells
from flows.comparison.sets import GENERIC, MeasuredSet, targets
from flows.settings import CompareMethods
from soe_model.presets import preset

SOUP = "soup"
AT_ONCE, COUNTS = "sets-at-once", (1, 2, 4, 8, 16)
LEAST_VALUES = 3
"""Of an option, to draw a curve."""


def chart(
    title: str, said: str, number: str, curves: Mapping[str, Any], flat: Mapping[str, Any]
) -> dict[str, Any]:
    """The common form."""
    return {"title": title, "said": said, "number": number, "curves": curves, "flat": flat}


def labels_of(cells: Cells) -> list[str]:
    """Their methods, a soup first."""
    return sorted({cell["method"] for cell in cells}, key=lambda label: (label != SOUP, label))


def spread(losses: Iterable[float]) -> dict[str, float | None]:
    """Mean and standard deviation of those that are finite."""
    known = [loss for loss in losses if isfinite(loss)]
    return {
        "mean": fmean(known) if known else None,
        "sd": stdev(known) if len(known) > 1 else None,
    }


def at_the_end(cells: Cells, label: str, names: Sequence[str]) -> dict[str, float | None] | None:
    """The mean loss on the sets of these names after training; None where a method was not measured on all of them."""
    losses = seeds.at_the_end(cells, label, names)
    return spread(losses.values()) if losses else None


def flat(cells: Cells, labels: Iterable[str], names: Sequence[str]) -> dict[str, Any]:
    """The same of several methods, of those that were measured."""
    found = {label: at_the_end(cells, label, names) for label in labels}
    return {label: loss for label, loss in found.items() if loss is not None}


def at_once(number: int) -> list[list[int]]:
    """Of `number` sets those that one model is for, each list a model; with as many in a list, every set as often."""
    return [
        sorted((first + place) % number for place in range(count))
        for count in COUNTS
        if count <= number
        for first in range(number if count < number else 1)
    ]


def question_at_once(sets: Sequence[MeasuredSet]) -> Question | None:
    """The loss of each of several sets under one model for all of them, whose domain weights are their mean."""
    of_sets = targets(list(sets))
    together = at_once(len(of_sets))
    if len(of_sets) < 2:
        return None
    weights_MK = torch.stack([torch.stack([of_sets[i].weights_K for i in some]).mean(0) for some in together])
    rows = {
        one.name: [row for row, some in enumerate(together) if i in some] for i, one in enumerate(of_sets)
    }
    return Question(weights_MK=weights_MK, rows=rows)


def collect_at_once(cells: Cells, sets: Sequence[MeasuredSet]) -> dict[str, Any] | None:
    """The mean loss by the number of sets that a model is for (as the paper's figure 10); None if none was measured."""
    names = [one.name for one in targets(list(sets))]
    asked = [cell for cell in cells if AT_ONCE in cell.get(FURTHER, {})]
    if not asked:
        return None
    together = at_once(len(names))
    counts = sorted({len(some) for some in together})
    curves = {
        label: [
            {"at": count}
            | spread(for_as_many(cell, names, count) for cell in asked if cell["method"] == label)
            for count in counts
        ]
        for label in labels_of(asked)
    }
    return chart(
        "Loss by the number of sets that one model is for",
        "Of models whose domain weights are the mean of several sets', made without training; mean over these sets, "
        "and over choices of them in which every set comes as often. Dotted: the one model for all.",
        "sets that a model is for",
        curves,
        flat(cells, ["generic"], names),
    )


def for_as_many(cell: Mapping[str, Any], names: Sequence[str], count: int) -> float:
    """The mean loss of a cell's models of so many sets each, on these; not a number where one was not finite."""
    together = at_once(len(names))
    losses = cell[FURTHER][AT_ONCE]
    found = []
    for i, name in enumerate(names):
        rows = [some for some in together if i in some]
        found += [loss for some, loss in zip(rows, losses[name], strict=True) if len(some) == count]
    return fmean(nan if loss is None else loss for loss in found)


def answer_at_once(found: Mapping[str, Any]) -> str:
    """One sentence, of all methods that were measured."""
    curves = {
        label: [one for one in curve if one["mean"] is not None] for label, curve in found["curves"].items()
    }
    said = [
        f"{label} {curve[0]['mean']:.3f} for {curve[0]['at']}, {curve[-1]['mean']:.3f} for {curve[-1]['at']} at once"
        for label, curve in curves.items()
        if curve
    ]
    generic = [f"generic {loss['mean']:.3f}" for loss in found["flat"].values()]
    return f"Mean loss of a model by the number of sets that it is for: {'; '.join(said + generic)}."


def collect_options(
    settings: CompareMethods, cells: Cells, sets: Sequence[MeasuredSet]
) -> dict[str, dict[str, Any]]:
    """A chart for each method whose entries differ in one number alone, by METHOD-OPTION."""
    names = [one.name for one in targets(list(sets))]
    found = {}
    for (base, option), entries in by_option(settings).items():
        curves = {
            what: [
                {"at": value, **loss}
                for value, label in entries.items()
                if (loss := at_the_end(cells, label, of_what)) is not None
            ]
            for what, of_what in (("specialist sets", names), (GENERIC, [GENERIC]))
        }
        curves = {what: points for what, points in curves.items() if points}
        if curves:
            found[f"{base}-{option}"] = chart(
                f"Loss of {base} by {option}",
                f"Of {', '.join(entries.values())}, which differ in nothing else.",
                option,
                curves,
                {},
            )
    return found


def by_option(settings: CompareMethods) -> dict[tuple[str, str], dict[float, str]]:
    """Method and option → value → entry, ascending: LEAST_VALUES entries or more that differ in this number alone.

    The method's own entry is one of them, if the option is one of COMMON and its others are theirs. Where a method has
    several such groups for one option, the largest.
    """
    groups: dict[tuple[str, str], dict[str, dict[float, str]]] = {}
    for label, options in settings.options.items():
        for option, value in options.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                of_option = groups.setdefault((label.partition(":")[0], option), {})
                of_option.setdefault(_without(options, option), {})[value] = label
    for (method, option), of_option in groups.items():
        value = _of_all(settings, method, option)
        others = _without(settings.options.get(method, {}), option)
        if value is not None and others in of_option and method in (settings.methods or []):
            of_option[others].setdefault(value, method)
    largest = {key: max(of_option.values(), key=len) for key, of_option in groups.items()}
    return {
        key: dict(sorted(entries.items())) for key, entries in largest.items() if len(entries) >= LEAST_VALUES
    }


def _without(options: Mapping[str, Any], option: str) -> str:
    return repr(sorted((name, repr(value)) for name, value in options.items() if name != option))


def _of_all(settings: CompareMethods, method: str, option: str) -> float | None:
    """The value of the method's plain entry, where it is one of the settings that all methods have."""
    if option in settings.options.get(method, {}) or option not in COMMON:
        return None
    given, chosen = getattr(settings, option), preset(str(settings.preset))
    return given or getattr(chosen, option, None) or getattr(chosen.training, option, None)


def answer_options(found: Mapping[str, Any]) -> str:
    """One sentence: at which value each of the losses is least."""
    said = []
    for what, points in found["curves"].items():
        best = min(points, key=lambda point: inf if point["mean"] is None else point["mean"])
        said.append(f"on the {what} at {best['at']:g} ({best['mean']:.3f})")
    return f"{found['title']}: least {', '.join(said)}."
