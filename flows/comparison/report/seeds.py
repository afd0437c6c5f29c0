"""Losses by seed, and whether two of them differ by more than the seeds do.

Methods with the same seed draw by the same random numbers, so differences are taken seed by seed. Their mean is surely
below 0 where its whole 90% interval is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from statistics import fmean, stdev
from typing import Any

from flows.comparison.measuring import FINISHED
from soe_model.specialists.evaluation import student_90

Cells = Sequence[Mapping[str, Any]]
BySeed = Mapping[int, float]
FEW = 3
"""With fewer seeds, it is said that they are few where they do not tell."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Whether something holds, in words that say what was found."""

    holds: bool
    said: str


def at_the_end(cells: Cells, label: str, names: Sequence[str]) -> dict[int, float]:
    """By seed the mean loss on the sets of these names after training, where all of them were measured."""
    ends = {
        cell["seed"]: cell["points"][-1]["losses"]
        for cell in cells
        if cell["method"] == label and cell["status"] == FINISHED
    }
    return {
        seed: fmean(end[name] for name in names)
        for seed, end in ends.items()
        if names and all(name in end for name in names)
    }


def below(first: str, second: str, of_first: BySeed, of_second: BySeed) -> Claim:
    """That the losses of the first are less, surely.

    Args:
        first: whose losses they are, in words: "the soup's loss on the sets".
        second: the same of the others: "generic's".
    """
    differences = [
        difference
        for seed in of_first.keys() & of_second.keys()
        if isfinite(difference := of_first[seed] - of_second[seed])
    ]
    if not differences:
        return Claim(holds=False, said=f"no seed measured {first} beside {second}")
    mean, around = fmean(differences), half_width(differences)
    if abs(mean) > around:
        side = "below" if mean < 0 else "above"
        return Claim(holds=mean < 0, said=f"{first} lies {abs(mean):.3f} ± {around:.3f} {side} {second}")
    number = len(differences)
    by = f"{mean:+.3f}" + ("" if number == 1 else f" ± {around:.3f}")
    words = (
        f"{number} seed{'s are' if number > 1 else ' is'} too few to tell"
        if number < FEW
        else "the seeds do not tell"
    )
    return Claim(holds=False, said=f"{words} whether {first} lies below {second} ({by})")


def half_width(values: Sequence[float]) -> float:
    """Of the 90% interval around the mean, if the values are normal; infinite for a single one."""
    if len(values) < 2:
        return inf
    return student_90(len(values)) * stdev(values) / len(values) ** 0.5
