"""A store with what was added to it, or a soup, from a folder to ``s3://bucket/prefix``.

A volume is the store itself or one addition. Of each, all files are sent first and the manifest of the domains last: it
is what readers open, so nobody sees half a volume. A volume that is there is never changed. If the sending is cut off,
the next run finds which files are whole by their size and the sha256 that was sent with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.places.buckets import Bucket
from pipeline.remote.transfer import transfer
from pipeline.tasks import Report, ignore_progress
from storage_schema.layout import store_and_additions
from storage_schema.manifest import (
    FileEntry,
    Manifest,
    StoreError,
    file_digest,
    manifest_name,
    parse_manifest,
    read_manifest,
    verify_file,
)

STAGES = ("passages", "tokenizer", "embeddings", "domains")
"""In the order in which their manifests are written."""
BESIDE = ("atlas.html", "domain-words.json")
"""Files beside the stages, where there are any. They are drawn anew with each addition."""


@dataclass(frozen=True, kw_only=True)
class _File:
    """A file of the store."""

    folder: Path
    """Of its stage."""
    entry: FileEntry
    name: str
    """Relative to the store."""


def publish_store(folder: Path, bucket: Bucket, *, report: Report = ignore_progress) -> None:
    """Send the finished volumes of the store in `folder` that are not there yet. Hold the claim (``claim.py``).

    Args:
        report: progress in megabytes; what was sent before counts.

    Raises:
        StoreError: another store is there, a file of the folder was altered, or the bucket cannot be written.
    """
    for volume in store_and_additions(folder):
        below = "" if volume == folder else volume.relative_to(folder).as_posix() + "/"
        there = bucket.read(f"{below}domains/manifest.json")
        if there is None:
            there = _publish_volume(volume, bucket, below, report)
        _require_same(volume / "domains", "domains", there, f"{bucket.uri}/{below}".rstrip("/"))
    for name in BESIDE:
        if (folder / name).exists() and bucket.digest(name) != (digest := file_digest(folder / name)):
            bucket.upload(folder / name, name, sha256=digest)


def publish_soup(folder: Path, bucket: Bucket, *, report: Report = ignore_progress) -> None:
    """Send the finished soup in `folder`, unless it is there. Arguments and errors as of :func:`publish_store`."""
    manifest, name = read_manifest(folder, "soup"), manifest_name("soup")
    there = bucket.read(name)
    if there is None:
        _send(
            [_File(folder=folder, entry=entry, name=entry.path) for entry in manifest.files],
            bucket,
            "",
            report,
        )
        there = bucket.create(name, (folder / name).read_bytes())
    _require_same(folder, "soup", there, bucket.uri)


def _require_same(folder: Path, kind: str, there: bytes, place: str) -> None:
    """Raise :class:`StoreError` unless `there`, the manifest of `kind` at `place`, is of what is in `folder`.

    The digest of a volume's domains is of all its stages, whose digests it holds.
    """
    what = "soup" if kind == "soup" else "store"
    here = read_manifest(folder, kind).digest
    other = parse_manifest(there, f"{place}, {manifest_name(kind)}", kind).digest
    if here != other:
        raise StoreError(
            f"{place} holds another {what}, of digest {other[:12]}; this one has {here[:12]}. A {what} is not replaced "
            "there: use another prefix, or remove what is there."
        )


def _publish_volume(volume: Path, bucket: Bucket, below: str, report: Report) -> bytes:
    """Send a volume. Returns the manifest of its domains as it is there now."""
    stages = [kind for kind in STAGES if (volume / kind).exists()]
    manifests = {kind: read_manifest(volume / kind, kind) for kind in stages}
    _send(list(_files(volume, manifests, below)), bucket, below, report)
    for kind in stages[:-1]:
        name = manifest_name(kind)
        bucket.write(f"{below}{kind}/{name}", (volume / kind / name).read_bytes())
    return bucket.create(f"{below}domains/manifest.json", (volume / "domains/manifest.json").read_bytes())


def _send(files: list[_File], bucket: Bucket, below: str, report: Report) -> None:
    """Send the files that are not there yet, and look whether all are."""
    there = bucket.sizes(below)

    def send(file: _File) -> None:
        same_size = there.get(file.name) == file.entry.bytes
        if not (same_size and bucket.digest(file.name) == file.entry.sha256):
            verify_file(file.folder, file.entry)
            bucket.upload(file.folder / file.entry.path, file.name, sha256=file.entry.sha256)

    transfer(send, [(file, file.entry.bytes) for file in files], report)
    _require_all(files, bucket, below)


def _files(volume: Path, manifests: dict[str, Manifest], below: str) -> Iterator[_File]:
    for kind, manifest in manifests.items():
        for entry in manifest.files:
            yield _File(folder=volume / kind, entry=entry, name=f"{below}{kind}/{entry.path}")


def _require_all(files: list[_File], bucket: Bucket, below: str) -> None:
    """Look once more before the manifest says that all files are there."""
    there = bucket.sizes(below)
    for file in files:
        if there.get(file.name) != file.entry.bytes:
            raise StoreError(
                f"{bucket.uri}/{file.name} has {there.get(file.name)} bytes instead of {file.entry.bytes}: something "
                "else writes there. Use another prefix, or end that and run again."
            )
