"""The mirror of a store that lies elsewhere: its small files, copied to this machine and checked.

    <SOE_HOME>/cache/<hash of the URI>/<hash of the manifests>/   the store's folder without its partitions

A mirror is never changed: if the store changes, a new mirror is made beside it. The folder ``cache`` may be removed
while nothing runs.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from pathlib import Path

from pyarrow import fs

from pipeline.places.retries import require_all, with_retries
from storage_schema.domains import PARTITIONS
from storage_schema.json_files import JSON_BYTES
from storage_schema.layout import home
from storage_schema.manifest import FileEntry, StoreError, read_manifest

_OTHERS = ("tokenizer", "embeddings", "passages")
"""The stages besides the domains. All files of the tokenizer are mirrored, and only the manifests of the others."""
CLAIM = "publishing.json"
"""In a store while it is written there: by whom (``claim.py``)."""
_REQUIRED = ("tokenizer", "embeddings")
"""The stages that the store itself must have; additions may lack them."""


def mirror_store(uri: str, filesystem: fs.FileSystem, path: str) -> Path:
    """Mirror the store as it is now, unless this machine has that mirror already, and return the mirror's folder.

    Any number of processes may call this at once: one copies and the others wait.

    Args:
        path: the store's path in `filesystem`.

    Raises:
        StoreError: a file of the store is missing, cannot be read, or differs from its manifest.
    """
    source = Source(uri, filesystem, path)
    manifests = source.manifests()
    room = home() / "cache" / hashlib.sha256(uri.encode()).hexdigest()[:20]
    version = hashlib.sha256(b"".join(hashlib.sha256(text).digest() for text in manifests.values()))
    folder = room / version.hexdigest()[:20]
    if folder.exists():
        return folder
    room.mkdir(parents=True, exist_ok=True)
    with open(room / ".lock", "a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            aside = room / ".partial"
            shutil.rmtree(aside, ignore_errors=True)
            for below, text in manifests.items():
                source.copy_volume(below, text, aside)
            os.rename(aside, folder)
    return folder


class Source:
    """A store or a soup elsewhere, read as files.

    Args:
        what: which it is, as an error says it.
    """

    def __init__(self, uri: str, filesystem: fs.FileSystem, path: str, *, what: str = "The store"):
        self.uri, self.filesystem, self.path, self.what = uri, filesystem, path, what

    def manifests(self) -> dict[str, bytes]:
        """The manifest of the domains of the store and of each addition, by their path below the store's folder (``""``
        for the store itself).
        """
        found = {"": self._manifest("")}
        for name in sorted(name for name in self.names("additions") if name[:1].isdigit()):
            # As on a disk, an addition without domains is not finished. Domains without a manifest are half a copy, or
            # are being published.
            if "domains" in self.names(f"additions/{name}"):
                found[f"additions/{name}/"] = self._manifest(f"additions/{name}/")
        return {below: text for below, text in found.items() if text is not None}

    def _manifest(self, below: str) -> bytes | None:
        """The manifest of the domains of a volume; None for an addition that is being published."""
        name = f"{below}domains/manifest.json"
        try:
            return self.read(name)
        except StoreError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
        if not self.has(CLAIM):
            return self.read(name)  # it may have come since
        if below:
            return None
        raise StoreError(f"{self.uri} is not finished: it is being published, {CLAIM} there says by whom.")

    def has(self, name: str) -> bool:
        """Whether there is a file of that name."""
        path, uri = f"{self.path}/{name}", f"{self.uri}/{name}"
        info = with_retries(lambda: self.filesystem.get_file_info(path), uri=uri, store=self.uri)
        return info.type == fs.FileType.File

    def read(self, name: str, at_most: int = JSON_BYTES) -> bytes:
        """Read a small file. Raises :class:`StoreError` as :func:`with_retries` does, and if the file is too large."""
        path, uri = f"{self.path}/{name}", f"{self.uri}/{name}"

        def attempt() -> bytes:
            with self.filesystem.open_input_file(path) as file:
                if file.size() > at_most:
                    raise StoreError(
                        f"{uri} has {file.size():,} bytes; at most {at_most:,} were expected. Copy the store there "
                        "again."
                    )
                return require_all(file.read_at(file.size(), 0), file.size())

        return with_retries(attempt, uri=uri, store=self.uri, what=self.what)

    def copy_volume(self, below: str, domains: bytes, folder: Path) -> None:
        """Copy the small files of the store or of an addition below `folder`."""
        self._copy_stage(f"{below}domains", "domains", domains, folder)
        there = self.names(below.rstrip("/"))
        for stage in _OTHERS:
            if stage in there or (not below and stage in _REQUIRED):
                text = self.read(f"{below}{stage}/manifest.json")
                self._copy_stage(f"{below}{stage}", stage, text, folder)

    def _copy_stage(self, name: str, kind: str, text: bytes, folder: Path) -> None:
        (folder / name).mkdir(parents=True)
        (folder / name / "manifest.json").write_bytes(text)
        try:
            manifest = read_manifest(folder / name, kind)
        except StoreError as error:
            raise StoreError(str(error).replace(str(folder), self.uri)) from error
        for entry in manifest.files:
            if kind == "tokenizer" or (kind == "domains" and not entry.path.startswith(PARTITIONS)):
                target = folder / name / entry.path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(self._checked(name, entry))

    def _checked(self, name: str, entry: FileEntry) -> bytes:
        data = self.read(f"{name}/{entry.path}", max(entry.bytes, JSON_BYTES))
        if len(data) != entry.bytes or hashlib.sha256(data).hexdigest() != entry.sha256:
            raise StoreError(
                f"{self.uri}/{name}/{entry.path} is not the file of its manifest ({len(data)} bytes, there "
                f"{entry.bytes}). Copy the store there again."
            )
        return data

    def names(self, below: str) -> set[str]:
        """The names directly in a folder of the store; empty if the folder does not exist."""
        selector = fs.FileSelector(f"{self.path}/{below}".rstrip("/"), allow_not_found=True)
        infos = with_retries(
            lambda: self.filesystem.get_file_info(selector), uri=f"{self.uri}/{below}", store=self.uri
        )
        return {info.base_name for info in infos}
