"""Checking that a disk has room for what will be written, before anything long starts."""

from __future__ import annotations

import shutil
from pathlib import Path

from storage_schema.errors import UserError

GB = 1e9


def require_room(folder: str | Path, needed: float, *, what: str, way_out: str) -> None:
    """Raise ValueError unless the disk of `folder` (which need not exist yet) has `needed` bytes free.

    Args:
        what: the thing to be written, as the message names it.
        way_out: what the user can do instead of freeing space, as the message says it.
    """
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UserError(
            f"{what} takes about {needed / GB:.3g} GB and the disk of {folder} has {free / GB:.3g} GB free. "
            f"Free some, or {way_out}."
        )


def bytes_below(folder: str | Path) -> int:
    """Total bytes of all files below `folder`; 0 if it does not exist."""
    return sum(path.lstat().st_size for path in Path(folder).rglob("*") if path.is_file())
