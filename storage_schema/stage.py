"""A stage is a folder whose manifest is written last.

While a stage is being built it lives in ``<folder>.partial``; :meth:`Stage.finish` hashes its files, writes
the manifest and renames the folder into place. So a folder without the suffix is finished, whatever
crashed before, and a ``.partial`` one holds reusable work of exactly one configuration. Files that only later steps
of the build need lie in its ``.scratch`` folder, which is removed once the manifest is on disk.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from storage_schema.aside import flush, remove_asides
from storage_schema.json_files import read_bounded
from storage_schema.manifest import (
    FileEntry,
    Manifest,
    StoreError,
    canonical_json,
    file_digest,
    manifest_name,
    read_manifest,
    shortened,
    verify_files,
    write_atomically,
)
from storage_schema.versions import newest_version

PARTIAL_SUFFIX = ".partial"
SCRATCH = ".scratch"
_REQUEST_NAME = "plan.json"
HASHED_AT_ONCE = 1 << 30
"""About so many bytes are hashed by a task. Fewer are not worth one, and are hashed by threads here."""
RunTasks = Callable[[Callable[..., Any], Sequence[tuple]], list[Any]]
"""Calls a function with each tuple of arguments, and returns the results in order."""


@dataclass(kw_only=True)
class Stage:
    """A stage being opened: either ``finished`` already, or to be built in ``work``."""

    folder: Path
    kind: str
    configuration: dict[str, Any]
    inputs: dict[str, str]
    finished: Manifest | None
    work: Path
    damage: str | None = None
    """Why a finished stage must be built again: a file is missing or has another size. None if nothing is wrong."""
    _start: float = field(default_factory=time.monotonic)

    @property
    def scratch(self) -> Path:
        """The folder in ``work`` for files that are not part of the stage. Whoever needs it makes it."""
        return self.work / SCRATCH

    def finish(self, counts: dict[str, Any], *, run: RunTasks | None = None) -> Manifest:
        """Hash the files in ``work``, write the manifest, and rename the folder into place.

        Args:
            run: runs tasks on many machines, which hash the files if they have more than ``HASHED_AT_ONCE`` bytes.
        """
        remove_asides(self.work)
        manifest = Manifest(
            kind=self.kind,
            schema_version=newest_version(self.kind),
            configuration=self.configuration,
            inputs=self.inputs,
            counts=counts,
            files=tuple(_entries(self.work, run)),
            seconds=round(time.monotonic() - self._start, 3),
        )
        write_atomically(self.work / manifest_name(self.kind), manifest.to_json())
        _publish(self.work, self.folder)
        self.finished = manifest
        return manifest

    def prepare(self) -> None:
        """Make ``work`` ready to build in. A finished stage stays in place until the new one is finished."""
        self.finished = None
        request = {"kind": self.kind, "configuration": self.configuration, "inputs": self.inputs}
        _prepare_work(self.work, canonical_json(request))
        (self.work / manifest_name(self.kind)).unlink(missing_ok=True)  # left by a build that is repeated


def open_stage(
    folder: str | Path,
    *,
    kind: str,
    configuration: dict,
    inputs: dict[str, str],
    rebuild: bool | None = False,
) -> Stage:
    """Open the stage at `folder`: finished with these settings, or ready to be built (or resumed).

    A finished stage that lacks a file, or has a file of another size, must be built again. The content of its files is
    not checked here (:func:`verify_files` does that).

    Args:
        rebuild: True replaces a stage that was made with other settings, once the new one is complete. None means that
            the caller cannot rebuild, so the error does not offer it.

    Raises:
        StoreError: a finished stage was made with other settings or inputs, and `rebuild` is not True.
    """
    folder, configuration = Path(folder), json.loads(canonical_json(configuration))
    work = folder.with_name(folder.name + PARTIAL_SUFFIX)
    finished = damage = None
    if (work / manifest_name(kind)).exists():  # a crash came between the manifest and the rename
        done = read_manifest(work, kind)
        if not folder.exists() or (rebuild and not _differences(done, configuration, inputs)):
            _publish(work, folder)
    if folder.exists():
        shutil.rmtree(_replaced(folder), ignore_errors=True)  # what a crash left of it
        finished = read_manifest(folder, kind)
        changes = _differences(finished, configuration, inputs)
        if changes and not rebuild:
            way_out = "remove the folder" if rebuild is None else "rebuild=true (--rebuild) to replace it"
            raise StoreError(
                f"{folder} was built with other settings: {'; '.join(changes)}. Use another name, or {way_out}."
            )
        if not changes:
            damage = _damage(folder, finished)
        if changes or damage:
            finished = None
    stage = Stage(
        folder=folder,
        kind=kind,
        configuration=configuration,
        inputs=inputs,
        finished=finished,
        work=work,
        damage=damage,
    )
    if finished is None:
        stage.prepare()
    return stage


def _damage(folder: Path, manifest: Manifest) -> str | None:
    try:
        verify_files(folder, manifest, content=False)
    except StoreError as error:
        return str(error)
    return None


def _entries(folder: Path, run: RunTasks | None) -> list[FileEntry]:
    """One entry per file of the stage. Each file is flushed to disk before it is read and hashed."""
    apart = {folder / _REQUEST_NAME, folder / SCRATCH}
    paths = [path for path in folder.rglob("*") if apart.isdisjoint((path, *path.parents))]
    files = sorted(path for path in paths if path.is_file() and not path.name.startswith("."))
    groups: list[list[str]] = []
    room = 0
    for path in files:
        size = path.stat().st_size
        if not groups or size > room:
            groups.append([])
            room = HASHED_AT_ONCE
        groups[-1].append(path.relative_to(folder).as_posix())
        room -= size
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(flush, [folder, *(path for path in paths if path.is_dir())]))
    if run is None or len(groups) < 2:
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing releases Python's global lock
            return list(pool.map(partial(_entry, folder), chain(*groups)))
    return list(chain(*run(hashed_files, [(folder, names) for names in groups])))


def hashed_files(folder: Path, names: Sequence[str]) -> list[FileEntry]:
    """The entries of some files in `folder`, each flushed to disk before it is hashed."""
    return [_entry(folder, name) for name in names]


def _entry(folder: Path, name: str) -> FileEntry:
    flush(folder / name)
    return FileEntry(path=name, bytes=(folder / name).stat().st_size, sha256=file_digest(folder / name))


def _differences(manifest: Manifest, configuration: dict, inputs: dict[str, str]) -> list[str]:
    changes = []
    for label, old, new in (
        ("", manifest.configuration, configuration),
        ("input ", manifest.inputs, inputs),
    ):
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                was, now = shortened(repr(old.get(key))), shortened(repr(new.get(key)))
                changes.append(f"{label}{key} was {was}, now {now}")
    return changes


def _prepare_work(work: Path, request: str) -> None:
    """Keep unfinished work of the same request and remove that of another. Other files are not touched."""
    record = work / _REQUEST_NAME
    discarded = work.with_name(f".{work.name}.discarded")
    shutil.rmtree(discarded, ignore_errors=True)
    if work.exists() and not record.exists() and any(work.iterdir()):
        raise StoreError(
            f"{work} is where {work.name.removesuffix(PARTIAL_SUFFIX)} would be put together, but it holds something "
            "else. Move it away, or choose another name."
        )
    if work.exists() and not (
        record.exists() and read_bounded(record, len(request.encode())) == request.encode()
    ):
        os.rename(work, discarded)  # half removed, it would look like somebody else's
        shutil.rmtree(discarded)
    work.mkdir(parents=True, exist_ok=True)
    remove_asides(work)
    write_atomically(record, request)


def _publish(work: Path, folder: Path) -> None:
    """Rename `work`, whose manifest is on disk, to `folder`. The former stage is removed only after that."""
    shutil.rmtree(work / SCRATCH, ignore_errors=True)
    old = _replaced(folder)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.rename(folder, old)
    os.rename(work, folder)
    (folder / _REQUEST_NAME).unlink(missing_ok=True)  # only now: until the rename it says what `work` holds
    flush(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _replaced(folder: Path) -> Path:
    """Where a former stage lies until it is removed. Hidden, so no user gave a folder this name."""
    return folder.with_name(f".{folder.name}.replaced")
