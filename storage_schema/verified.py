"""Checking every byte of a large artefact only once.

``.verified.json`` beside the manifest remembers the size, times of change and inode of each verified file. A file
that was written since is read again. Only a change below the file system (a failing disk) escapes this; a full check
finds it.
"""

from __future__ import annotations

import contextlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from storage_schema.json_files import as_object, read_object
from storage_schema.manifest import FileEntry, Manifest, verify_file, write_atomically

STAMP = ".verified.json"


def verify_once(folder: str | Path, manifest: Manifest) -> None:
    """Check each file's size, and its sha256 unless the file was verified before and has not changed since.

    Raises:
        StoreError: naming the file that is missing, of another size, or altered.
    """
    stamp = Path(folder) / STAMP
    known = _read(stamp, manifest.digest)

    def verify(entry: FileEntry) -> list[int] | None:
        path = Path(folder) / entry.path
        before = _state(path) if path.exists() else None
        verify_file(folder, entry, content=before is None or known.get(entry.path) != before)
        return before

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing releases Python's global lock
        now = dict(
            zip((entry.path for entry in manifest.files), pool.map(verify, manifest.files), strict=True)
        )
    if now != known:
        with contextlib.suppress(OSError):  # files in a read-only folder are verified each time
            write_atomically(stamp, json.dumps({"digest": manifest.digest, "files": now}))


def _state(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _read(stamp: Path, digest: str) -> dict[str, list[int]]:
    try:
        body = read_object(stamp)
        return as_object(body["files"], stamp) if body["digest"] == digest else {}
    except (OSError, ValueError, KeyError):
        return {}
