"""Reading every byte of a large artefact once: files whose content was verified are remembered by what stat says.

``.verified.json`` beside the manifest holds size, times of change and inode of each. A file that was written since
is read again; only an alteration below the file system, such as a failing disk's, needs a full check to be seen.
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
    """Check each file's size, and its sha256 unless that was done before and the file is the same since.

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

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing leaves Python to the others
        now = dict(
            zip((entry.path for entry in manifest.files), pool.map(verify, manifest.files), strict=True)
        )
    if now != known:
        with contextlib.suppress(OSError):  # a folder that may only be read is verified each time
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
