"""Byte ranges of files that lie elsewhere, through a bounded cache of blocks; a failed read is tried again.

A read ends with the bytes that were asked for or with an error that names the file, whatever the network does, and
whoever replaces the file meanwhile: ``pyarrow.fs`` has no conditional reads, so after the reads of some blocks each
file is asked, all at once, whether it is still the one that was first opened, and only then are the blocks used. What
the bytes mean is ``store.py``'s matter.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from pyarrow import fs

from pipeline.places.retries import all_of, with_retries
from storage_schema.manifest import StoreError

BLOCK_BYTES = 64 << 10
"""Bytes; blocks are aligned to it. A window of 1024 tokens is 2 or 4 KiB, a request costs some 10 ms."""
BLOCKS_PER_REQUEST = 16
"""Missing blocks that are neighbours are one request, up to so many."""
CACHE_BYTES = 256 << 20
DIGEST_BYTES = 4 << 20
OPEN_FILES, OPEN_HERE = 4096, 128
"""Handles kept: on S3 an open file is no connection, but opening it is a request; on a disk it is a descriptor."""
LOOKED_AFTER_SECONDS = 10.0
"""A file of which nothing is read, a manifest, is asked for its size and version at most so often."""
THREADS = 24
"""Requests under way at once; the S3 client has 25 connections."""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file elsewhere."""

    path: str
    """In its file system."""
    uri: str
    """Its name in errors."""
    bytes: int
    """Its size by the manifest: a file of another size is refused."""
    label: str = ""
    """What an error begins with, such as ``domain 12: ``."""


class RemoteFiles:
    """Reads blocks of the files of one store. Threads may share it.

    Args:
        store: the store's URI, for errors.
        cache_bytes: of blocks kept, those used longest ago going first.
        open_files: file handles kept (while they are read, each thread may hold one more); None: as many as the kind of
            file system suggests.
    """

    def __init__(
        self,
        store: str,
        filesystem: fs.FileSystem,
        *,
        cache_bytes: int = CACHE_BYTES,
        open_files: int | None = None,
        threads: int = THREADS,
    ):
        self.store, self.filesystem = store, filesystem
        self.cache_bytes = cache_bytes
        self.open_files = open_files or (OPEN_HERE if filesystem.type_name == "local" else OPEN_FILES)
        self.cached_bytes = 0
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="remote-store")
        self._lock = threading.Lock()
        self._blocks: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._handles: OrderedDict[str, pa.NativeFile] = OrderedDict()
        self._versions: dict[str, object] = {}
        self._written: dict[str, int] = {}
        self._looked: dict[str, float] = {}

    def note(self, folder: str, *, uri: str) -> None:
        """Remember when the files below a folder were written: one that was written again before it is first opened
        is refused as well. Raises :class:`StoreError` if the folder cannot be listed.
        """
        selector = fs.FileSelector(folder, allow_not_found=True, recursive=True)
        listed = with_retries(lambda: self.filesystem.get_file_info(selector), uri=uri, store=self.store)
        self._written |= {info.path: _seconds(info) for info in listed if info.type == fs.FileType.File}

    def read(self, file: RemoteFile, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a file, as they lie there: a few, not to be kept.

        Raises :class:`StoreError` as :meth:`blocks` does.
        """
        return self._persist(
            file, lambda: all_of(self._handle(file).read_at(stop - start, start), stop - start)
        )

    def digest(self, file: RemoteFile) -> str:
        """sha256 of the whole file, which is still the one that was first opened. Raises :class:`StoreError` as
        :meth:`blocks` does.
        """

        def read() -> str:
            found, handle = hashlib.sha256(), self._handle(file)
            for start in range(0, file.bytes, DIGEST_BYTES):
                size = min(DIGEST_BYTES, file.bytes - start)
                found.update(all_of(handle.read_at(size, start), size))
            return found.hexdigest()

        found = self._persist(file, read)
        self._look(file)
        return found

    def blocks(self, wanted: Mapping[RemoteFile, Sequence[int] | np.ndarray]) -> dict[tuple[str, int], bytes]:
        """The blocks of these ascending numbers, by path and number; those not in the cache are fetched at once.

        A file of which no blocks are wanted is looked at only. Not to be called from a thread of the pool, which
        would wait for itself.

        Raises:
            StoreError: a file is missing, was truncated or replaced, or could not be read.
        """
        held = self._held(wanted)
        runs = list(_runs(wanted, held))
        fetched = self._at_once(self._fetch, runs)
        read = {file for file, _, _ in runs}
        idle = {file for file, numbers in wanted.items() if not len(numbers)}
        self._at_once(
            self._look, [(file,) for file in wanted if file in read or (file in idle and self._is_due(file))]
        )
        for blocks in fetched:
            self._keep(blocks)
            held |= blocks
        return held

    def _at_once(self, work: Callable[..., T], items: Sequence[tuple[Any, ...]]) -> list[T]:
        """What `work` makes of each item; after the first error no further ones are begun."""
        if len(items) == 1:
            return [work(*items[0])]
        futures = [self.pool.submit(work, *item) for item in items]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()

    def _persist(self, file: RemoteFile, read: Callable[[], T]) -> T:
        return with_retries(
            read, uri=file.uri, store=self.store, label=file.label, failed=lambda: self._forget(file)
        )

    def _is_due(self, file: RemoteFile) -> bool:
        return time.monotonic() - self._looked.get(file.path, -np.inf) >= LOOKED_AFTER_SECONDS

    def _look(self, file: RemoteFile) -> None:
        """See that the file is still the one that was first opened."""
        self._persist(file, lambda: self._open(file))

    def _held(self, wanted: Mapping[RemoteFile, Sequence[int] | np.ndarray]) -> dict[tuple[str, int], bytes]:
        found = {}
        with self._lock:
            for file, numbers in wanted.items():
                for number in numbers:
                    key = file.path, int(number)
                    if key in self._blocks:
                        self._blocks.move_to_end(key)
                        found[key] = self._blocks[key]
        return found

    def _fetch(self, file: RemoteFile, low: int, high: int) -> dict[tuple[str, int], bytes]:
        """Read the blocks [low, high) in one request."""
        start, stop = low * BLOCK_BYTES, min(high * BLOCK_BYTES, file.bytes)
        data = self.read(file, start, stop)
        return {
            (file.path, number): data[at : at + BLOCK_BYTES]
            for number, at in enumerate(range(0, stop - start, BLOCK_BYTES), start=low)
        }

    def _keep(self, blocks: Mapping[tuple[str, int], bytes]) -> None:
        with self._lock:
            for key, block in blocks.items():
                self.cached_bytes += len(block) - len(self._blocks.pop(key, b""))
                self._blocks[key] = block
            while self.cached_bytes > self.cache_bytes:
                self.cached_bytes -= len(self._blocks.popitem(last=False)[1])

    def _handle(self, file: RemoteFile) -> pa.NativeFile:
        with self._lock:
            if file.path in self._handles:
                self._handles.move_to_end(file.path)
                return self._handles[file.path]
        return self._open(file)

    def _open(self, file: RemoteFile) -> pa.NativeFile:
        """A new handle of the file, which is asked for its size and version as it is opened."""
        now = time.monotonic()
        handle = self.filesystem.open_input_file(file.path)
        if handle.size() != file.bytes:
            raise self._refusal(
                file,
                f"has {handle.size()} bytes instead of {file.bytes}: it was truncated or replaced. Copy the store "
                "there again.",
            )
        told = dict(handle.metadata() or {})
        version = told.get("ETag") or self.filesystem.get_file_info(file.path).mtime_ns
        late = file.path not in self._versions and not self._as_noted(file)
        if (
            self._versions.setdefault(file.path, None if late else version) != version
        ):  # None: of no file, for good
            raise self._refusal(
                file,
                "was replaced while it was read. Was the store copied there again? If it is the same store, run the "
                "same command again with verify_store=true, which reads and compares every partition first.",
            )
        with self._lock:
            self._looked[file.path] = now
            self._handles[file.path] = handle
            while len(self._handles) > self.open_files:
                self._handles.popitem(last=False)  # closed with its last reference: a thread may be reading
        return handle

    def _as_noted(self, file: RemoteFile) -> bool:
        """Whether the file was last written when :meth:`note` saw it; later on its version tells more."""
        noted = self._written.get(file.path)
        return noted is None or _seconds(self.filesystem.get_file_info(file.path)) == noted

    def _refusal(self, file: RemoteFile, why: str) -> StoreError:
        """The error of a file that is another now. What is kept of it may be of either, and is dropped."""
        with self._lock:
            for key in [key for key in self._blocks if key[0] == file.path]:
                self.cached_bytes -= len(self._blocks.pop(key))
        return StoreError(f"{file.label}{file.uri} {why}")

    def _forget(self, file: RemoteFile) -> None:
        """Drop the file's handle: opening it again tells a missing or truncated file from a bad connection."""
        with self._lock:
            self._handles.pop(file.path, None)


def _seconds(info: fs.FileInfo) -> int:
    """When a file was written: S3 tells it more exactly in a listing than of a single file."""
    return (info.mtime_ns or 0) // 10**9


def _runs(
    wanted: Mapping[RemoteFile, Sequence[int] | np.ndarray], found: Mapping[tuple[str, int], bytes]
) -> Iterator[tuple[RemoteFile, int, int]]:
    """Stretches [low, high) of neighbouring blocks that are not in `found`."""
    for file, numbers in wanted.items():
        missing = [int(number) for number in numbers if (file.path, int(number)) not in found]
        low = 0
        for at in range(1, len(missing) + 1):
            if (
                at == len(missing)
                or missing[at] != missing[at - 1] + 1
                or missing[at] - missing[low] >= BLOCKS_PER_REQUEST
            ):
                yield file, missing[low], missing[at - 1] + 1
                low = at
