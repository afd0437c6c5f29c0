"""A store whose domain partitions lie elsewhere, such as ``s3://bucket/prefix``: windows are read by range.

Everything but the partitions is small and is mirrored into ``SOE_HOME/cache``, once per machine and version of the
store, so all other code reads local paths. Of a partition, only the blocks that hold windows are fetched
(``files.py``). A file's size is compared with the manifest, and where its tokens lie with the index. Its sha256 is not
checked, because that would take the whole file (run ``soe audit`` on a copy). The manifest must stay the one that was
mirrored: this is how a rebuilt store is noticed even if a partition is first opened after the rebuild.

Legend: L tokens in a sequence, m windows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import fs

from pipeline.places.locations import open_filesystem
from pipeline.places.retries import with_retries
from pipeline.remote.block_cache import CACHE_BYTES, Blocks
from pipeline.remote.files import BLOCK_BYTES, RemoteFile, RemoteFiles
from pipeline.remote.mirror import mirror_store
from pipeline.remote.partition_layout import find_values
from pipeline.remote.windows import RemoteWindows, blocks_touched
from storage_schema.arrow_files import values_are_at
from storage_schema.domains import DomainStore
from storage_schema.manifest import StoreError


def open_store(store: str | Path, *, num_volumes: int | None = None) -> DomainStore:
    """Open the store at a local path, or at a URI (with ``://``).

    Args:
        num_volumes: open the store as it was when it had this many volumes; None for all of them.

    Raises:
        StoreError: there are no finished domains, they cannot be read, or files are missing.
        ValueError: the URI cannot be opened (:func:`~pipeline.places.locations.open_filesystem`).
    """
    if "://" in str(store):
        return RemoteStore(str(store), num_volumes=num_volumes)
    return DomainStore(store, num_volumes=num_volumes)


class RemoteStore(DomainStore):
    """A store elsewhere, whose windows can be read. :attr:`folder` is the folder of its mirror.

    Args:
        uri: ``s3://bucket/prefix``, or another URI that ``pyarrow.fs`` opens.
        num_volumes: as for :class:`DomainStore`.
        cache_bytes: how many bytes of partitions are kept in memory.

    Raises:
        StoreError, ValueError: as :func:`open_store` does.
    """

    def __init__(self, uri: str, *, num_volumes: int | None = None, cache_bytes: int = CACHE_BYTES):
        self.uri = uri.rstrip("/")
        filesystem, self._path = open_filesystem(self.uri, what="The store")
        self.files = RemoteFiles(self.uri, filesystem, cache_bytes=cache_bytes)
        self._remember_partitions()  # before the manifests are read
        self.mirror = mirror_store(self.uri, filesystem, self._path)
        super().__init__(self.mirror, num_volumes=num_volumes)
        self._tokens_at: dict[tuple[int, int], int] = {}
        self._manifests = [self._manifest(volume.folder) for volume in self.volumes]
        self.blocks({})

    def passages(self, domain: int) -> pa.Table:
        """Raises :class:`StoreError`: passages are read only from a store on this machine."""
        raise StoreError(
            f"domain {domain}: passages are read from a store on this machine only. Copy {self.uri} here."
        )

    def windows(self, domain: int, sequence_length: int) -> list[RemoteWindows]:
        """The domain's windows in each volume that has any. Reads nothing.

        Raises :class:`StoreError` if a volume's manifest lacks the file.
        """
        return [
            RemoteWindows(
                self,
                (number, domain),
                self._file_of(number, domain),
                int(volume.tokens_K[domain]),
                sequence_length,
            )
            for number, volume in enumerate(self.volumes)
            if volume.tokens_K[domain] > sequence_length
        ]

    def windows_in_cache(self, sequence_length: int) -> int:
        """How many windows fit into the cache even if no two share a block; at least one."""
        return max(
            1,
            self.files.cache.most_bytes
            // BLOCK_BYTES
            // blocks_touched((sequence_length + 1) * self.token_dtype.itemsize),
        )

    def prefetch(self, domains: np.ndarray, rows: np.ndarray, sequence_length: int) -> None:
        """Fetch the blocks of many domains' windows in parallel, as many as the cache holds.

        If the windows are then read one domain after the other, they wait for the network once, not once per domain.

        Args:
            domains: int64[m].
            rows: int64[m]; the number of a window in its domain, counting through the domain's volumes.

        Raises:
            StoreError: as :meth:`RemoteWindows.gather` does.
        """
        wanted: list[tuple[RemoteWindows, np.ndarray]] = []
        order = np.argsort(domains, kind="stable")
        found, edges = np.unique(domains[order], return_index=True)
        for domain, left in zip(found.tolist(), np.split(rows[order], edges[1:]), strict=True):
            for windows in self.windows(domain, sequence_length):
                inside = left < len(windows)
                if inside.any():
                    wanted.append((windows, left[inside]))
                left = left[~inside] - len(windows)
        list(self.files.pool.map(lambda item: item[0].tokens_at, wanted))
        budget = self.files.cache.most_bytes // BLOCK_BYTES
        blocks: dict[RemoteFile, set[int]] = {}
        for windows, left in wanted:
            there = blocks.setdefault(windows.file, set())
            new = [number for number in windows.blocks_of(left).tolist() if number not in there][:budget]
            there.update(new)
            budget -= len(new)
        self.blocks({file: sorted(numbers) for file, numbers in blocks.items()})

    def blocks(self, wanted: Mapping[RemoteFile, Sequence[int] | np.ndarray]) -> Blocks:
        """:meth:`RemoteFiles.blocks`, which also raises :class:`StoreError` if a manifest changed."""
        return self.files.blocks(dict.fromkeys(self._manifests, ()) | dict(wanted))

    def tokens_at(self, number: int, domain: int) -> int:
        """The byte of its file at which a domain's token stream begins. It is found once, with one or two small reads.

        Args:
            number: of the volume.

        Raises:
            StoreError: it does not lie where the index says, or the file cannot be read.
        """
        if (number, domain) not in self._tokens_at:
            volume = self.volumes[number]
            file, count = self._file_of(number, domain), int(volume.tokens_K[domain])
            itemsize, read = self.token_dtype.itemsize, partial(self.files.read, file)
            at = int(volume.tokens_at_K[domain])
            if volume.file_per_domain:
                where = find_values(read, file.bytes, count, itemsize)
            else:
                where = at if values_are_at(at, count, itemsize, file.bytes, read) else None
            if where is None:
                raise StoreError(
                    f"domain {domain}: {file.uri} does not hold its {count} tokens where they should be. It was "
                    "replaced, or written by another program: copy the store there again."
                )
            self._tokens_at[number, domain] = where
        return self._tokens_at[number, domain]

    def _remember_partitions(self) -> None:
        """Remember the partitions of the store and its additions, and no other file: there may be very many."""
        selector = fs.FileSelector(f"{self._path}/additions", allow_not_found=True)
        filesystem = self.files.filesystem
        added = with_retries(lambda: filesystem.get_file_info(selector), uri=self.uri, store=self.uri)
        for folder in (self._path, *(info.path for info in added)):
            self.files.remember_files(f"{folder}/domains", uri=self.uri)

    def _manifest(self, folder: Path) -> RemoteFile:
        mirrored = folder / "manifest.json"
        below, size = mirrored.relative_to(self.mirror).as_posix(), mirrored.stat().st_size
        return RemoteFile(path=f"{self._path}/{below}", uri=f"{self.uri}/{below}", bytes=size)

    def remote_file(self, number: int, name: str) -> RemoteFile:
        """A file of a volume's domains. Raises :class:`StoreError` if the volume's manifest lacks it."""
        below = (self.volumes[number].folder.relative_to(self.mirror) / name).as_posix()
        try:
            size = self.volumes[number].size(name)
        except StoreError as error:
            raise StoreError(str(error).replace(str(self.mirror), self.uri)) from error
        return RemoteFile(path=f"{self._path}/{below}", uri=f"{self.uri}/{below}", bytes=size)

    def _file_of(self, number: int, domain: int) -> RemoteFile:
        volume = self.volumes[number]
        return self.remote_file(number, volume.name(int(volume.file_K[domain])))
