"""Finished work on disk: written aside under a name of one's own, flushed, and renamed.

A file under its own name is whole, whatever crashed while it was written, and however many wrote it at once: a task
that was taken for dead may still be writing when another does its work again.
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
    """A path beside `path` that no other writer has: what the block writes there becomes `path` at its end.

    It is flushed to disk before it is renamed. If the block fails, it goes, and `path` stays as it was.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{uuid4().hex[:12]}{_SUFFIX}")
    try:
        yield aside
        flush(aside)
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def remove_asides(folder: Path) -> None:
    """Remove what writers that were killed left below `folder`; none may be writing there."""
    for aside in folder.rglob(f".*{_SUFFIX}"):
        aside.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
