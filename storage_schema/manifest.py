"""The manifest of a finished folder: its settings, its inputs, and the size and sha256 of each of its files."""

from __future__ import annotations

import errno
import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from storage_schema.aside import written_aside
from storage_schema.errors import UserError
from storage_schema.json_files import as_object, parse_json, read_object
from storage_schema.versions import SCHEMA_VERSION, WRITTEN_BY, version_problem

MANIFEST_NAMES = {"soup": "soup.json", "specialist": "specialist.json"}
_WAY_OUT = "Build it again, or put back the file as it was written."
PASSING = {
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENETDOWN,
    errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ECONNRESET, errno.ECONNREFUSED, errno.EREMOTEIO,
}  # fmt: skip
"""Errors of a disk, a server of files or a network, which say nothing of the file."""
NOT_THERE = FileNotFoundError, NotADirectoryError, IsADirectoryError
"""Errors that do say something of a file: there is none under its name."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


class StoreError(UserError):
    """Something on disk is missing, altered, of another version, or made with other settings."""


class UnavailableError(StoreError):
    """Something could not be read now, for a reason other than its content: a later attempt may succeed."""


def unreadable(path: str | Path, error: OSError) -> StoreError:
    """The error of a file that is there and that the system does not give us, which does not make it damaged.

    :class:`UnavailableError` where a disk, a server of files or a network failed; a plain :class:`StoreError` for the
    rest, such as a permission that is missing.
    """
    said = f"cannot read {path}: {error.strerror or error}."
    if error.errno in PASSING:
        return UnavailableError(f"{said} That says nothing of its content: try again when the disk answers.")
    return StoreError(f"{said} That says nothing of its content: give this user the right to read it.")


def manifest_name(kind: str) -> str:
    """The manifest's file name: ``soup.json`` for soups, ``specialist.json``, else ``manifest.json``."""
    return MANIFEST_NAMES.get(kind, "manifest.json")


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file of a stage."""

    path: str
    """Relative to the stage's folder, with forward slashes."""
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        path = self.path
        # Manifests travel with soups and stores. The files they name are read, and a mirror writes them.
        inside = isinstance(path, str) and path.isprintable() and path == PurePosixPath(path).as_posix()
        if not inside or path.startswith("/") or {"..", "."} & set(path.split("/")):
            raise UserError(f"{path!r:.200} is not the path of a file in the folder")
        if type(self.bytes) is not int or self.bytes < 0:
            raise UserError(f"the size of {path} is {self.bytes!r:.40}, and must be a number of bytes")
        if not isinstance(self.sha256, str) or not _SHA256.fullmatch(self.sha256):
            raise UserError(f"the sha256 of {path} is {self.sha256!r:.80}, and must be 64 hexadecimal digits")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a finished stage holds and what it was made from."""

    kind: str
    """``tokenizer``, ``passages``, ``embeddings``, ``domains``, ``soup``, ``specialist``, ..."""
    configuration: dict[str, Any]
    """The settings that decide the content."""
    inputs: dict[str, str]
    """The digest of each upstream stage or file, by its name."""
    counts: dict[str, Any]
    """Rows, tokens, and whatever else the stage reports."""
    files: tuple[FileEntry, ...]
    seconds: float = 0.0
    """Wall time of the build; not part of the digest."""
    schema_version: int = SCHEMA_VERSION
    written_by: str = WRITTEN_BY

    def __post_init__(self) -> None:
        kinds = {"kind": str, "configuration": dict, "inputs": dict, "counts": dict, "seconds": int | float}
        for name, kind in kinds.items():
            if not isinstance(getattr(self, name), kind):
                raise UserError(f"its {name} is a {type(getattr(self, name)).__name__}")

    @property
    def digest(self) -> str:
        """sha256 of everything that decides the content; equal digests mean equal stages."""
        return content_digest(
            {
                "kind": self.kind,
                "schema_version": self.schema_version,
                "configuration": self.configuration,
                "inputs": self.inputs,
                "counts": self.counts,
                "files": [[f.path, f.bytes, f.sha256] for f in self.files],
            }
        )

    def to_json(self) -> str:
        body = {**self.__dict__, "files": [f.__dict__ for f in self.files], "digest": self.digest}
        return json.dumps(body, indent=1, sort_keys=True, allow_nan=False) + "\n"


def read_manifest(folder: str | Path, kind: str, *, name: str | None = None) -> Manifest:
    """Read and check the manifest of a finished stage (not its files; see :func:`verify_files`).

    Args:
        name: the manifest's file name, if it is not the usual one.

    Raises:
        StoreError: it is missing, altered, or of another kind or version; the message names the folder and the way
            out.
    """
    path = Path(folder) / (name or manifest_name(kind))
    if not path.exists():
        raise StoreError(f"no {kind} at {folder}: {path.name} is missing. Build it first, or check the name.")
    return _manifest_in(lambda: read_object(path), path, folder, kind)


def parse_manifest(content: bytes, where: str, kind: str) -> Manifest:
    """The manifest that was read from `where`, checked as :func:`read_manifest` does."""
    return _manifest_in(lambda: as_object(parse_json(content, where), where), where, where, kind)


def _manifest_in(read: Callable[[], dict[str, Any]], path: object, folder: object, kind: str) -> Manifest:
    try:
        body = read()
    except ValueError as error:
        raise StoreError(f"{path} is not a manifest: {error!r}. {_WAY_OUT}") from error
    if "schema_version" in body and (problem := version_problem(path, body)):
        raise StoreError(problem)
    try:
        digest, version = body.pop("digest"), body["schema_version"]
        files = tuple(FileEntry(**f) for f in body["files"])
        manifest = Manifest(**{**body, "files": files, "schema_version": version})
    except (TypeError, KeyError, ValueError) as error:
        raise StoreError(f"{path} is not a manifest: {error!r}. {_WAY_OUT}") from error
    if manifest.kind != kind:
        raise StoreError(f"{folder} holds a {manifest.kind}, not a {kind}.")
    if manifest.digest != digest:
        raise StoreError(f"{path} was altered: its digest does not match its content. {_WAY_OUT}")
    return manifest


def verify_files(folder: str | Path, manifest: Manifest, *, content: bool = True) -> None:
    """Check that every file of the stage is there with its size and, if `content`, its sha256."""
    for entry in manifest.files:
        verify_file(folder, entry, content=content)


def verify_file(folder: str | Path, entry: FileEntry, *, content: bool = True) -> None:
    """Check one file of the stage at `folder`. Raises :class:`StoreError` naming it."""
    path = Path(folder) / entry.path
    if not path.exists():
        raise StoreError(f"{path} is missing. Rebuild {folder}.")
    if not path.is_file():  # a pipe or a device would be read without end
        raise StoreError(f"{path} is not a regular file. Rebuild {folder}.")
    if path.stat().st_size != entry.bytes:
        raise StoreError(
            f"{path} has {path.stat().st_size} bytes, its manifest says {entry.bytes}. Rebuild {folder}."
        )
    if content and file_digest(path) != entry.sha256:
        raise StoreError(f"{path} was altered: its sha256 differs from the manifest. Rebuild {folder}.")


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and without NaN. Raises TypeError for a value that JSON cannot represent."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def content_digest(value: Any) -> str:
    """sha256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_digest(path: str | Path) -> str:
    """sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shortened(text: str) -> str:
    """The text, cut to a length that fits a message."""
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def write_atomically(path: str | Path, data: str | bytes | Iterable[str]) -> None:
    """Write aside, flush to disk, rename: `path` holds the old or the new content, never a part.

    Data too large for memory can be given as an iterable of strings. Raises :class:`StoreError` if the folder is
    missing.
    """
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise StoreError(
            f"{path} cannot be written: there is no folder {folder}. Make it, or choose another place."
        )
    with written_aside(path) as aside, open(aside, "wb") as file:
        for piece in [data] if isinstance(data, str | bytes) else data:
            file.write(piece.encode() if isinstance(piece, str) else piece)
