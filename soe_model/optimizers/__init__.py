"""Optimizers of the experts, by name. `adam` is that of Algorithm 2; the others say in their names how they differ."""

from __future__ import annotations

from functools import partial
from typing import Any

from soe_model.optimizers.adam import Adam, AdamExperts
from soe_model.optimizers.compact import CompactExperts, Moments
from soe_model.optimizers.tile import AdamConfig
from storage_schema.errors import UserError

MOMENTS = {
    "adam-bf16-moments": Moments(),
    "factored": Moments(factored_second=True),
    "factored-int8": Moments(factored_second=True, int8_first=True),
}
OPTIMIZERS = {"adam": AdamExperts} | {
    name: partial(CompactExperts, moments=moments) for name, moments in MOMENTS.items()
}
__all__ = ["MOMENTS", "OPTIMIZERS", "Adam", "AdamConfig", "AdamExperts", "CompactExperts", "bytes_of"]


def bytes_of(name: str) -> tuple[float, float]:
    """Bytes per element of the bank: those held (weight and moments), and those moved in a step.

    Raises ValueError, listing the names, for an unknown one.
    """
    check_name(name)
    of: Any = MOMENTS.get(name) or OPTIMIZERS[name]
    return of.state_bytes, of.moved_bytes


def check_name(name: str) -> None:
    """Raise ValueError, listing the names, for one that no optimizer has."""
    if name not in OPTIMIZERS:
        raise UserError(f"no optimizer {name!r}; there are {', '.join(OPTIMIZERS)}.")
