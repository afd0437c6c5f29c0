"""Whether a disk has room for what is about to be written, before anything long starts."""

from __future__ import annotations

import shutil
from pathlib import Path

from storage_schema.errors import UserError

GB = 1e9


def require_room(folder: str | Path, needed: float, *, what: str, way_out: str) -> None:
    """Raise ValueError unless the disk of `folder`, which need not be there yet, has `needed` bytes free.

    Args:
        what: is written, for the message.
        way_out: what to do about it besides freeing some, for the message.
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
    """Bytes of all files below `folder`; 0 if there is none."""
    return sum(path.lstat().st_size for path in Path(folder).rglob("*") if path.is_file())
