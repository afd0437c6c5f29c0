"""Checks that a setting is within its bound; the error names the setting, its value and the bound."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from storage_schema.errors import UserError


def require(config: object, names: Sequence[str], holds: Callable[[Any], bool], bound: str) -> None:
    """Raise UserError for the first of these fields whose value breaks the bound."""
    for name in names:
        value = getattr(config, name)
        try:
            within = holds(value)
        except TypeError:  # of another type: no number, or none that can be compared
            within = False
        if not within:
            raise UserError(f"{name} is {value}; it must be {bound}.")


def whole(value: Any) -> bool:
    """A whole number, at least 1."""
    return isinstance(value, int) and value >= 1


def finite_positive(value: float) -> bool:
    """A number above 0 and below infinity; NaN is not one."""
    return 0 < value < math.inf
