"""Reading JSON within bounds: whatever the file holds, the result is a value or one clear error.

Python's own reader takes files of any size and depth, keeps the last of two equal keys, and accepts NaN and infinity,
which are not JSON. None of our files has any of these, and each has led to a confusing error later.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from storage_schema.errors import UserError

JSON_BYTES = 32 << 20
"""The largest of ours, the manifest of a store with a file for each of 4096 domains, had 0.7 MB."""
JSON_DEPTH = 100


def read_json(path: str | Path) -> Any:
    """The value in a JSON file.

    Raises:
        OSError: it is missing, or cannot be read.
        ValueError: it is not JSON, or beyond a bound; the message names the file.
    """
    return parse_json(read_bounded(path, JSON_BYTES), path)


def read_object(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file; errors as :func:`read_json`."""
    return as_object(read_json(path), path)


def as_object(value: Any, where: object) -> dict[str, Any]:
    """Return the value if it is a JSON object; raise ValueError naming `where` if it is not."""
    if not isinstance(value, dict):
        raise UserError(f"{where} is not a JSON object, but a {type(value).__name__}.")
    return value


def parse_json(content: bytes, where: object) -> Any:
    """Parse UTF-8 JSON. Raises ValueError naming `where` if it is not JSON or exceeds a bound."""
    if len(content) > JSON_BYTES:
        raise UserError(f"{where} has more than {JSON_BYTES:,} bytes; none of our JSON files is that large.")
    try:
        value = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_number,
            parse_float=_finite,
        )
        deep = _is_deep(value)
    except RecursionError:
        deep = True
    except ValueError as error:
        raise UserError(f"{where} is not JSON: {error}.") from error
    if deep:
        raise UserError(f"{where} is nested deeper than {JSON_DEPTH} levels; none of our JSON files is.")
    return value


def read_bounded(path: str | Path, at_most: int) -> bytes:
    """Read a file, but never more than `at_most` + 1 bytes: a longer result tells that the file is too large.

    Raises ValueError for anything but a regular file: reading a pipe could wait forever.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is not a regular file.")
    with open(path, "rb") as file:
        return file.read(at_most + 1)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"it has the key {twice[:80]!r} twice")
    return found


def _no_number(text: str) -> Any:
    raise UserError(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise UserError(f"{text[:40]} is beyond the largest float")
    return value


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(JSON_DEPTH):
        level = [
            child
            for one in level
            if isinstance(one, dict | list)
            for child in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return False
    return True
