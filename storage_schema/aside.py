"""Writing a file under a temporary name of the writer's own, then flushing and renaming it.

So a file under its final name is whole, whatever crashed, and even if several writers wrote it at once: Ray may start
a task again while the first attempt, which it believes dead, still writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

_SUFFIX = ".aside"


@contextmanager
def written_aside(path: str | Path) -> Iterator[Path]:
    """Give the block a path beside `path` that no other writer uses, and rename it to `path` when the block ends.

    The file is flushed to disk before it is renamed. If the block fails, the file is removed and `path` stays as it
    was.
    """
    path = Path(path)
    aside = _beside(path)
    try:
        yield aside
        flush(aside)
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


@contextmanager
def own_file(path: str | Path) -> Iterator[Path]:
    """Give the block a path beside `path` that no other writer uses, and remove the file when the block ends."""
    aside = _beside(Path(path))
    try:
        yield aside
    finally:
        aside.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid4().hex[:12]}{_SUFFIX}")


def remove_asides(folder: Path) -> None:
    """Remove the files that killed writers left below `folder`. No writer may be at work there."""
    for aside in folder.rglob(f".*{_SUFFIX}"):
        aside.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
