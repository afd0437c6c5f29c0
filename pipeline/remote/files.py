"""Reading byte ranges of files that lie elsewhere, through a bounded cache of blocks. A failed read is tried again.

A read ends with the bytes that were asked for, or with an error that names the file, even if the file is replaced
meanwhile. ``pyarrow.fs`` has no conditional reads. So after blocks were read, each of their files is checked (all in
parallel): only if it is still the file that was first opened are its blocks used. What the bytes mean is the concern of
``store.py``.
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

from pipeline.places.retries import require_all, with_retries
from pipeline.remote.block_cache import CACHE_BYTES, BlockCache, Blocks
from storage_schema.manifest import StoreError

BLOCK_BYTES = 64 << 10
"""A block's size; blocks are aligned to it. A window of 1024 tokens is 2 or 4 KiB, and a request costs about 10 ms."""
BLOCKS_PER_REQUEST = 16
"""Up to this many neighbouring blocks are fetched in one request."""
DIGEST_BYTES = 4 << 20
OPEN_FILES, OPEN_LOCAL_FILES = 4096, 128
"""How many file handles are kept. On S3 opening a file is a request but holds no connection; on a disk each open file
takes a descriptor."""
CHECK_SECONDS = 10.0
"""A file of which no block is read (a manifest) is checked again only after this many seconds."""
THREADS = 24
"""Requests in parallel; the S3 client has 25 connections."""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file elsewhere."""

    path: str
    """The path in its file system."""
    uri: str
    """The name in errors."""
    bytes: int
    """The size in the manifest; a file of another size is refused."""


class RemoteFiles:
    """Reads blocks of the files of one store. Threads may share it.

    Args:
        store: the store's URI, for errors.
        cache_bytes: the size of the cache. Blocks that were not used for the longest time are dropped first.
        open_files: how many file handles are kept, besides those that threads are reading from. None chooses by the
            kind of file system.
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
        self.store, self.filesystem, self.cache = store, filesystem, BlockCache(cache_bytes)
        self.open_files = open_files or (OPEN_LOCAL_FILES if filesystem.type_name == "local" else OPEN_FILES)
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="remote-store")
        self._lock = threading.Lock()
        self._handles: OrderedDict[str, pa.NativeFile] = OrderedDict()
        self._versions: dict[str, object] = {}
        self._written: dict[str, int] = {}
        self._checked_at: dict[str, float] = {}

    def remember_files(self, folder: str, *, uri: str) -> None:
        """Remember when each file below a folder was written. A file that is written again before it is first opened
        is then refused too.

        Raises :class:`StoreError` if the folder cannot be listed.
        """
        selector = fs.FileSelector(folder, allow_not_found=True, recursive=True)
        listed = with_retries(lambda: self.filesystem.get_file_info(selector), uri=uri, store=self.store)
        self._written |= {info.path: _seconds(info) for info in listed if info.type == fs.FileType.File}

    def read(self, file: RemoteFile, start: int, stop: int) -> bytes:
        """Read bytes [start, stop) of a file past the cache. Raises :class:`StoreError` as :meth:`blocks` does."""
        return self._with_retries(
            file, lambda: require_all(self._handle(file).read_at(stop - start, start), stop - start)
        )

    def digest(self, file: RemoteFile) -> str:
        """sha256 of the whole file. Raises :class:`StoreError` as :meth:`blocks` does, also if it was replaced."""
        found = hashlib.sha256()
        for start in range(0, file.bytes, DIGEST_BYTES):
            found.update(self.read(file, start, min(start + DIGEST_BYTES, file.bytes)))
        self._check_unchanged(file)
        return found.hexdigest()

    def blocks(self, wanted: Mapping[RemoteFile, Sequence[int] | np.ndarray]) -> Blocks:
        """Get blocks, from the cache or else in parallel from where the files lie.

        Args:
            wanted: the numbers of each file's blocks, ascending. A file without numbers is only checked. Do not call
                this from a thread of the pool, which would wait for itself.

        Returns:
            The blocks by path and number.

        Raises:
            StoreError: a file is missing, was truncated or replaced, or could not be read.
        """
        cached = self.cache.get(
            (file.path, int(number)) for file, numbers in wanted.items() for number in numbers
        )
        runs = list(_runs(wanted, cached))
        fetched = self._in_parallel(self._fetch, runs)
        read = {file for file, _, _ in runs}
        idle = {file for file, numbers in wanted.items() if not len(numbers)}
        to_check = (file for file in wanted if file in read or (file in idle and self._needs_check(file)))
        self._in_parallel(self._check_unchanged, [(file,) for file in to_check])
        for blocks in fetched:
            self.cache.add(blocks)
            cached |= blocks
        return cached

    def _in_parallel(self, work: Callable[..., T], items: Sequence[tuple[Any, ...]]) -> list[T]:
        """Call `work` on each item and return the results. After the first error no further calls are begun."""
        if len(items) == 1:
            return [work(*items[0])]
        futures = [self.pool.submit(work, *item) for item in items]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()

    def _with_retries(self, file: RemoteFile, read: Callable[[], T]) -> T:
        return with_retries(read, uri=file.uri, store=self.store, failed=lambda: self._drop_handle(file))

    def _needs_check(self, file: RemoteFile) -> bool:
        return time.monotonic() - self._checked_at.get(file.path, -np.inf) >= CHECK_SECONDS

    def _check_unchanged(self, file: RemoteFile) -> None:
        """Raise :class:`StoreError` unless the file is still the one that was first opened."""
        self._with_retries(file, lambda: self._open(file))

    def _fetch(self, file: RemoteFile, low: int, high: int) -> Blocks:
        """Read the blocks [low, high) of a file in one request."""
        start, stop = low * BLOCK_BYTES, min(high * BLOCK_BYTES, file.bytes)
        data = self.read(file, start, stop)
        return {
            (file.path, number): data[at : at + BLOCK_BYTES]
            for number, at in enumerate(range(0, stop - start, BLOCK_BYTES), start=low)
        }

    def _handle(self, file: RemoteFile) -> pa.NativeFile:
        with self._lock:
            if file.path in self._handles:
                self._handles.move_to_end(file.path)
                return self._handles[file.path]
        return self._open(file)

    def _open(self, file: RemoteFile) -> pa.NativeFile:
        """Open the file, and check its size and version. Raises :class:`StoreError` if one of them differs."""
        now = time.monotonic()
        handle = self.filesystem.open_input_file(file.path)
        if handle.size() != file.bytes:
            raise self._refusal(
                file,
                f"has {handle.size()} bytes instead of {file.bytes}: it was truncated or replaced. Copy the store "
                "there again.",
            )
        metadata = dict(handle.metadata() or {})
        version = metadata.get("ETag") or self.filesystem.get_file_info(file.path).mtime_ns
        replaced = file.path not in self._versions and not self._as_listed(file)
        # No file has the version None: a file that was replaced before it was first opened stays refused.
        if self._versions.setdefault(file.path, None if replaced else version) != version:
            raise self._refusal(
                file,
                "was replaced while it was read. Was the store copied there again? If it is the same store, run the "
                "same command again with verify_store=true, which reads and compares every partition first.",
            )
        with self._lock:
            self._checked_at[file.path] = now
            self._handles[file.path] = handle
            while len(self._handles) > self.open_files:
                self._handles.popitem(last=False)  # not closed here, because a thread may be reading from it
        return handle

    def _as_listed(self, file: RemoteFile) -> bool:
        """Whether the file has the time of writing that :meth:`remember_files` saw. Once it was opened, its version
        tells changes more exactly.
        """
        listed = self._written.get(file.path)
        return listed is None or _seconds(self.filesystem.get_file_info(file.path)) == listed

    def _refusal(self, file: RemoteFile, why: str) -> StoreError:
        """The error for a replaced file. Its cached blocks are dropped: they may come from either file."""
        self.cache.drop(file.path)
        return StoreError(f"{file.uri} {why}")

    def _drop_handle(self, file: RemoteFile) -> None:
        """Drop the file's handle. Opening the file again tells whether it is missing or truncated, or the connection
        is bad.
        """
        with self._lock:
            self._handles.pop(file.path, None)


def _seconds(info: fs.FileInfo) -> int:
    """When a file was written, in whole seconds: S3 gives fractions only in listings."""
    return (info.mtime_ns or 0) // 10**9


def _runs(
    wanted: Mapping[RemoteFile, Sequence[int] | np.ndarray], found: Blocks
) -> Iterator[tuple[RemoteFile, int, int]]:
    """Ranges [low, high) of neighbouring blocks that are not in `found`, at most :data:`BLOCKS_PER_REQUEST` long."""
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
