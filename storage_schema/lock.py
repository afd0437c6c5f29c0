"""One writer per folder: a second one is refused, and a dead one leaves nothing to clear away."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from storage_schema.json_files import as_object, parse_json
from storage_schema.manifest import StoreError

LOCK = ".lock"


@contextmanager
def only_writer(folder: str | Path) -> Iterator[None]:
    """Lock `folder` (made if it is missing) while the block runs.

    The system drops the lock when the process ends, however it ends. Between machines the lock works if the file
    system supports it (NFS 4 and cluster file systems do).

    Raises:
        StoreError: another process holds the lock (the message names it), or the file system has no locks.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise StoreError(
                f"{folder} is being written by {_holder(file.read(4096))}. Wait for it, or use another name."
            ) from error
        except OSError as error:
            raise _no_locks(folder, error) from error
        file.truncate(0)
        file.write(json.dumps({"process": os.getpid(), "host": socket.gethostname()}))
        file.flush()
        yield


@contextmanager
def in_turn(folder: str | Path) -> Iterator[None]:
    """Wait until nobody else writes or replaces `folder`, then be the only one to do so while the block runs.

    The lock file lies beside the folder, because the folder itself is replaced; it is removed at the end.

    Raises StoreError if the file system has no locks.
    """
    folder = Path(folder)
    lock = folder.with_name(f".{folder.name}{LOCK}")
    while True:
        with open(lock, "a", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                raise _no_locks(folder, error) from error
            if not _is_open(lock, file):
                continue  # the former holder has removed this file
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


def _no_locks(folder: Path, error: OSError) -> StoreError:
    return StoreError(
        f"{folder} cannot be locked: {error.strerror}. Mount its file system with locks (Lustre: -o flock), or set "
        "SOE_HOME to a folder on another disk."
    )


def _is_open(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _holder(text: str) -> str:
    try:
        holder = as_object(parse_json(text.encode(), LOCK), LOCK)
        return f"process {holder['process']} on {holder['host']}"
    except (ValueError, KeyError):
        return "another process"
