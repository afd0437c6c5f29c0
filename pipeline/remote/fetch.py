"""A whole store from elsewhere into a folder, each file checked by its sha256.

A stage is put together beside its place and renamed when it is whole. If the fetching is cut off, the next run keeps
the files that are whole.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa

from pipeline.places.locations import open_filesystem
from pipeline.places.retries import require_all, with_retries
from pipeline.remote.mirror import Source
from pipeline.remote.publish import STAGES
from pipeline.remote.transfer import transfer
from pipeline.tasks import Report, ignore_progress, is_disk_full
from storage_schema.aside import remove_asides, written_aside
from storage_schema.manifest import (
    FileEntry,
    Manifest,
    StoreError,
    UnavailableError,
    manifest_name,
    parse_manifest,
    read_manifest,
    verify_file,
    write_atomically,
)
from storage_schema.room import bytes_below, require_room

PIECE_BYTES = 8 << 20


@dataclass(frozen=True, kw_only=True)
class FetchedStage:
    """A stage elsewhere, and where it will be here."""

    name: str
    """Relative to the place; empty for the place itself."""
    manifest: Manifest
    work: Path
    """The folder in which it is put together."""
    target: Path


def fetch_store(uri: str, folder: Path, *, report: Report = ignore_progress) -> bool:
    """Copy the finished volumes of the store at `uri` that `folder` lacks, and return whether there is a store at all.

    Args:
        uri: ``s3://bucket/prefix``, or another URI that ``pyarrow.fs`` opens.
        report: progress in megabytes.

    Raises:
        StoreError: a file of the store is missing or altered, or cannot be read; or the folder holds another store.
        ValueError: the URI cannot be opened, or the disk is too small.
    """
    filesystem, path = open_filesystem(uri, what="The store")
    source = Source(uri.rstrip("/"), filesystem, path)
    if not source.has("domains/manifest.json"):
        return False
    stages = [stage for below in source.manifests() for stage in _stages(source, below, folder)]
    fetch_stages(source, stages, report=report)
    return True


def fetch_stages(source: Source, stages: Sequence[FetchedStage], *, report: Report = ignore_progress) -> None:
    """Copy stages, several files at once, and give them their names in this order. Raises as :func:`fetch_store`."""
    files = [((stage, entry), entry.bytes) for stage in stages for entry in stage.manifest.files]
    if stages:
        needed = sum(size for _, size in files) - sum(bytes_below(stage.work) for stage in stages)
        way_out = "set SOE_HOME to a folder on a larger disk"
        require_room(stages[0].work, needed, what=f"a copy of {source.uri}", way_out=way_out)
    transfer(lambda file: _fetch_file(source, *file), files, report)
    for stage in stages:
        os.rename(stage.work, stage.target)


def _stages(source: Source, below: str, folder: Path) -> Iterator[FetchedStage]:
    """The stages of a volume that the folder lacks, those of the domains last."""
    there = source.names(below.rstrip("/"))
    for kind in STAGES:
        if kind not in there:
            continue
        name, target = f"{below}{kind}", folder / below / kind
        content = source.read(f"{name}/manifest.json")
        manifest = parse_manifest(content, f"{source.uri}/{name}/manifest.json", kind)
        if not target.exists():
            yield stage_to_fetch(name, manifest, content, target)
        elif read_manifest(target, kind).digest != manifest.digest:
            raise StoreError(
                f"{source.uri}/{name} is of another store than {target}, which was to become it. Give another "
                f"prefix; or remove {folder}, and what is at {source.uri} is copied there."
            )


def stage_to_fetch(name: str, manifest: Manifest, content: bytes, target: Path) -> FetchedStage:
    """A stage that will be `target`, which nobody else fetches. `content` is its manifest as it was read."""
    work = target.with_name(f".{target.name}.fetched")
    there = work / manifest_name(manifest.kind)
    if there.exists() and there.read_bytes() != content:  # what was begun is there no longer
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    remove_asides(work)
    write_atomically(there, content)
    return FetchedStage(name=name, manifest=manifest, work=work, target=target)


def _fetch_file(source: Source, stage: FetchedStage, entry: FileEntry) -> None:
    below = f"{stage.name}/{entry.path}".lstrip("/")
    target, uri = stage.work / entry.path, f"{source.uri}/{below}"
    if target.exists():  # of a run that was cut off
        try:
            return verify_file(stage.work, entry)
        except StoreError:
            target.unlink()
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        _copy(source, f"{source.path}/{below}", target, entry, uri)
    except OSError as error:
        if is_disk_full(error):
            raise StoreError(
                f"The disk of {target.parent} is full: {error}. Free some space, or set SOE_HOME to a folder on a "
                "larger disk, and run again."
            ) from error
        raise UnavailableError(f"cannot write {target}: {error}. Mend that and run again.") from error


def _copy(source: Source, path: str, target: Path, entry: FileEntry, uri: str) -> None:
    """Copy one file; it gets its name only if its content is that of its manifest.

    A piece that fails is asked for again, not the whole file, which may have gigabytes.
    """
    handle: pa.NativeFile | None = None
    changed = f"{uri} is not the file of its manifest. Copy it there again."

    def read(at: int) -> bytes:
        nonlocal handle
        handle = handle or source.filesystem.open_input_file(path)
        if handle.size() != entry.bytes:
            raise StoreError(changed)
        size = min(PIECE_BYTES, entry.bytes - at)
        return require_all(handle.read_at(size, at), size)

    def drop() -> None:
        nonlocal handle
        handle = None

    found = hashlib.sha256()
    with written_aside(target) as aside, open(aside, "wb") as file:
        for at in range(0, max(entry.bytes, 1), PIECE_BYTES):
            piece = with_retries(partial(read, at), uri=uri, store=source.uri, what=source.what, failed=drop)
            found.update(piece)
            file.write(piece)
        if found.hexdigest() != entry.sha256:
            raise StoreError(changed)
