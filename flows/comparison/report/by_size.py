"""Charts by a number of parameters: entries with backbones of several sizes (the paper's figure 7, left), and soups of
dense and of low-rank experts (its figure 9).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from flows.comparison.measuring import FINISHED
from flows.comparison.report.by_number import SOUP, Cells, at_the_end, chart
from flows.comparison.sets import MeasuredSet, targets
from flows.settings import CompareMethods

GENERIC = "generic"
SIZES, EXPERTS = "sizes", "experts"
OF_SIZE = {"preset", "backbone"}
OF_EXPERTS = {"num_experts", "expert_rank"}
RATES = {"learning_rate", "expert_learning_rate", "router_learning_rate", "warmup_steps"}
"""Options that each size may have of its own."""


def sizes(settings: CompareMethods, cells: Cells, method: str) -> dict[int, str]:
    """Parameters of a model served → the entry of the method that has it, ascending."""
    found = _by_cost(cells, _entries(settings, method, OF_SIZE), "specialist_size")
    return {size: label for label, size in sorted(found.items(), key=lambda item: item[1])}


def collect_sizes(settings: CompareMethods, cells: Cells, sets: list[MeasuredSet]) -> dict[str, Any] | None:
    """The mean loss of soup and generic by the size of a model; None where there are not two sizes of both."""
    names = [one.name for one in targets(sets)]
    of_methods = {method: sizes(settings, cells, method) for method in (SOUP, GENERIC)}
    if len(of_methods[SOUP].keys() & of_methods[GENERIC].keys()) < 2:
        return None
    return chart(
        "Loss by the size of a model",
        "Of soups and of generic models that differ in their backbone, with the same tokens; mean over the sets.",
        "parameters of a model",
        {method: _curve(cells, by_size, names) for method, by_size in of_methods.items()},
        {},
    )


def experts(settings: CompareMethods, cells: Cells) -> tuple[dict[str, int], dict[str, int]]:
    """Soups of dense experts, and of low-rank ones: entry → parameters that are trained, ascending."""
    found = _by_cost(cells, _entries(settings, SOUP, OF_EXPERTS), "pretrained_size")
    found = dict(sorted(found.items(), key=lambda item: item[1]))
    low = {label: size for label, size in found.items() if _rank(settings, label)}
    return {label: size for label, size in found.items() if label not in low}, low


def collect_experts(settings: CompareMethods, cells: Cells, sets: list[MeasuredSet]) -> dict[str, Any] | None:
    """The mean loss of soups by the parameters that are trained; None unless some have dense and some low-rank
    experts.
    """
    names = [one.name for one in targets(sets)]
    dense, low = experts(settings, cells)
    if not dense or not low:
        return None
    kinds = {"dense": dense}
    for label, size in low.items():
        number = settings.options[label].get("num_experts") or settings.num_experts
        words = "low-rank" if number is None else f"low-rank, {number} experts"
        kinds.setdefault(words, {})[label] = size
    return chart(
        "Loss by the parameters that are trained",
        "Of soups with dense and with low-rank experts, of which more have as many parameters; mean over the sets.",
        "parameters that are trained",
        {
            kind: _curve(cells, {size: label for label, size in entries.items()}, names)
            for kind, entries in kinds.items()
        },
        {},
    )


def _entries(settings: CompareMethods, method: str, differing: Collection[str]) -> list[str]:
    """The method's own entry, and those that differ from it in these options, one or more, and else in rates alone."""
    found = []
    for label in settings.methods or [method]:
        options, plain = settings.options.get(label, {}), settings.options.get(method, {})
        others = {name for name in options | plain if options.get(name) != plain.get(name)}
        if label.partition(":")[0] == method and others <= {*differing, *RATES}:
            if label == method or others & {*differing}:
                found.append(label)
    return found


def _by_cost(cells: Cells, labels: Collection[str], cost: str) -> dict[str, int]:
    return {
        cell["method"]: cell["cost"][cost]
        for cell in cells
        if cell["method"] in labels and cell["status"] == FINISHED
    }


def _rank(settings: CompareMethods, label: str) -> int | None:
    return settings.options.get(label, {}).get("expert_rank")


def _curve(cells: Cells, labels: dict[int, str], names: list[str]) -> list[dict[str, Any]]:
    return [
        {"at": number} | loss
        for number, label in labels.items()
        if (loss := at_the_end(cells, label, names)) is not None
    ]
