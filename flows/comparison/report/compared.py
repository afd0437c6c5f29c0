"""What the sentences on the paper's figures are read from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flows.comparison.measuring import FINISHED
from flows.comparison.report.seeds import Cells, at_the_end
from flows.comparison.sets import MeasuredSet, targets
from flows.settings import CompareMethods


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A comparison's settings, sets and cells."""

    settings: CompareMethods
    sets: Sequence[MeasuredSet]
    cells: Cells
    surface: Mapping[str, Any] | None = None
    """As :func:`flows.comparison.report.surface.collect_surface`."""
    choices: Mapping[str, Any] | None = None
    """As :func:`flows.comparison.report.choices.collect`."""

    @property
    def names(self) -> list[str]:
        """Of the sets that specialists are made for."""
        return [one.name for one in targets(list(self.sets))]

    @property
    def by_kind(self) -> dict[str, list[str]]:
        """Their kinds → their names."""
        kinds = {one.name: one.kind for one in targets(list(self.sets))}
        return {
            kind: [name for name, its in kinds.items() if its == kind]
            for kind in dict.fromkeys(kinds.values())
        }

    def finished(self, label: str) -> list[Mapping[str, Any]]:
        """The cells of an entry."""
        return [cell for cell in self.cells if cell["method"] == label and cell["status"] == FINISHED]

    def ends(self, label: str, names: Sequence[str] | None = None) -> dict[int, float]:
        """By seed the mean loss of an entry on some sets, or on all that specialists are made for."""
        return at_the_end(self.cells, label, self.names if names is None else names)

    def has(self, *labels: str) -> bool:
        """Whether all of these entries have a finished cell."""
        return all(self.finished(label) for label in labels)
