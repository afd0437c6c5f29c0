"""What must be trained for the methods of a comparison: those with the same pretraining share it.

Legend: W sets, K domains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from flows.comparison.contenders import Contender
from soe_model.methods.flat import FlatMethod
from soe_model.methods.method import Run
from storage_schema.manifest import content_digest


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """The runs that some contenders have in common, with one seed."""

    seed: int
    runs: list[Run]
    contenders: list[Contender]
    digest: str

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"seed-{self.seed}-{self.digest[:16]}"

    @property
    def labels(self) -> tuple[str, ...]:
        """Of its contenders."""
        return tuple(one.label for one in self.contenders)

    @property
    def method(self) -> FlatMethod:
        """One that begins the runs."""
        return self.contenders[0].method

    @property
    def law(self) -> dict[str, Any]:
        """As :attr:`Contender.law`."""
        return self.contenders[0].law

    @property
    def steps(self) -> int:
        """Of all runs together."""
        return sum(run.training.steps for run in self.runs)


def pretrainings(
    of_seed: Sequence[Contender], targets_WK: torch.Tensor, *, seed: int, store: str
) -> list[Pretraining]:
    """What must be trained for the contenders, each with those that it is for."""
    found: dict[str, Pretraining] = {}
    for one in of_seed:
        runs = one.method.runs(targets_WK)
        begin = type(one.method).begin
        decides = {
            "store": store,
            "begin": begin.__qualname__,
            "options": {} if begin is FlatMethod.begin else one.options,
            "runs": [_identity(run) for run in runs],
        }
        if one.law:
            decides["law"] = one.law
        digest = content_digest(decides)
        if digest in found:
            found[digest].contenders.append(one)
        else:
            found[digest] = Pretraining(seed=seed, runs=runs, contenders=[one], digest=digest)
    return list(found.values())


def _identity(run: Run) -> dict[str, Any]:
    weights_K = run.domain_weights_K
    return {
        "name": run.name,
        "soup": asdict(run.soup),
        "training": run.training.described(),
        "weights": None if weights_K is None else [round(float(weight), 9) for weight in weights_K],
        "begins_from": run.begins_from,
    }
