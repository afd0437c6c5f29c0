"""Reading the windows that a plan names from a store's files, many at a time.

Legend: K domains, V volumes, F files of a volume, L tokens in a sequence.
"""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np

from pipeline.remote.store import RemoteStore
from pipeline.stream.gather import gather
from storage_schema.arrow_files import MappedFile
from storage_schema.domains import DomainStore

CHECK_SECONDS = 1.0
"""A file is checked before and after a read, but not again within this many seconds: at thousands of domains per second
the checks would take longer than reading the tokens."""
MOST_MAPPINGS = 24_576
"""The most files that a reader maps. Linux allows a process 65,530 mappings (``vm.max_map_count``), and libraries
and threads need some too."""


def window_reader(store: DomainStore, sequence_length: int) -> MappedReader | RangeReader:
    """The reader of this store's windows."""
    if isinstance(store, RemoteStore):
        return RangeReader(store, sequence_length)
    return MappedReader(store, sequence_length)


class MappedReader:
    """Reads windows of a store on this machine. The most recently used files stay memory-mapped, which takes no file
    descriptors.

    One array per domain would cost more than copying the bytes, at thousands of domains per second. So windows are
    found by their memory addresses, and one gather (``gather.py``) copies all of them. Only addresses in mapped files
    are read.
    """

    def __init__(self, store: DomainStore, sequence_length: int):
        self.store, self.sequence_length = store, sequence_length
        self._windows_VK = np.stack([volume.windows_K(sequence_length) for volume in store.volumes])
        self._windows_K = self._windows_VK.sum(0)
        self._first_VK = np.cumsum(self._windows_VK, axis=0) - self._windows_VK
        self._address_VK = np.zeros(self._windows_VK.shape, np.int64)
        """The address at which the domain's row 0 would be if it lay in this volume; 0 if its file is not mapped, or
        nothing of it was read since."""
        self._file_VK = np.stack([volume.file_K for volume in store.volumes])
        files = len(store.volumes), int(self._file_VK.max()) + 1
        self._checked_VF = np.full(files, -np.inf)
        self._mapped_VF = np.zeros(files, bool)
        self._seen: dict[tuple[int, int], MappedFile] = {}
        self._dtype = store.token_dtype
        self._step = sequence_length * self._dtype.itemsize

    def read(self, domains: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Read the windows `rows` of `domains`: [len(rows), L + 1] of the store's token type.

        Raises:
            StoreError: a file is missing, damaged, or was changed while it was read; the message names it.
            IndexError: a domain has no such window.
        """
        beyond = rows.astype(np.uint64) >= self._windows_K[domains]  # an address must never be made of these
        if beyond.any():
            domain, row = domains[beyond][0], rows[beyond][0]
            raise IndexError(f"domain {domain} has {self._windows_K[domain]} windows; there is no row {row}.")
        if len(rows) > MOST_MAPPINGS // 2:  # each may lie in another file
            halves = zip(np.array_split(domains, 2), np.array_split(rows, 2), strict=True)
            return np.concatenate([self.read(*half) for half in halves])
        self._make_room(len(rows))
        checked: list[MappedFile] = []
        if len(self._windows_VK) == 1:
            addresses = self._addresses(0, domains, rows, checked)
        else:
            addresses = np.empty(len(rows), np.int64)
            for number, first_K in enumerate(self._first_VK):
                inside = (rows - first_K[domains]).astype(np.uint64) < self._windows_VK[number][domains]
                addresses[inside] = self._addresses(number, domains[inside], rows[inside], checked)
        windows = gather(addresses, self.sequence_length + 1, self._dtype)
        for file in checked:
            file.check()
        return windows

    def finish(self) -> None:
        """Call after the last read: checks that no file was changed. Raises StoreError as :meth:`read` does."""
        for number, file in np.argwhere(self._mapped_VF).tolist():
            self._seen[number, file].check()

    def _addresses(
        self, number: int, domains: np.ndarray, rows: np.ndarray, checked: list[MappedFile]
    ) -> np.ndarray:
        """The addresses of windows that lie in one volume. The files that were checked are added to `checked`."""
        checked += self._check_files(number, domains)
        first = self._address_VK[number][domains]
        if not first.all():
            checked += self._find(number, np.unique(domains[first == 0]))
            first = self._address_VK[number][domains]
        return first + rows * self._step

    def _check_files(self, number: int, domains: np.ndarray) -> list[MappedFile]:
        """Map files that are not mapped, and check that no file was changed: reading past the end of a shortened file
        gives zeros or kills the process.
        """
        now = time.monotonic()
        used = np.flatnonzero(np.bincount(self._file_VK[number][domains]))
        due = used[now - self._checked_VF[number, used] > CHECK_SECONDS]
        for file in due.tolist():
            if (number, file) not in self._seen:
                self._seen[number, file] = self.store.volumes[number].mapped(file)
            self._mapped_VF[number, file] = True
            self._seen[number, file].check()
        self._checked_VF[number, due] = now
        return [self._seen[number, file] for file in due.tolist()]

    def _find(self, number: int, domains: np.ndarray) -> list[MappedFile]:
        """Find where the token streams of some domains begin. Returns their files, which are checked first."""
        volume = self.store.volumes[number]
        files = {file: self._seen[number, file] for file in self._file_VK[number, domains].tolist()}
        for file in files.values():
            file.check()
        for domain in domains.tolist():
            tokens = volume.tokens(domain, files[self._file_VK[number, domain]])
            self._address_VK[number, domain] = (
                tokens.ctypes.data - self._first_VK[number, domain] * self._step
            )
        return [*files.values()]

    def _make_room(self, wanted: int) -> None:
        """Unmap the files that were not used for the longest time, so that `wanted` more can be mapped.

        Call it only while no address is in use.
        """
        too_many = int(np.count_nonzero(self._mapped_VF)) + wanted - MOST_MAPPINGS
        if too_many <= 0:
            return
        oldest = np.argsort(self._checked_VF[self._mapped_VF])[:too_many]
        for number, file in np.argwhere(self._mapped_VF)[oldest].tolist():
            self._seen[number, file].unmap()
            self._mapped_VF[number, file] = False
            self._checked_VF[number, file] = -np.inf
            first, end = np.searchsorted(self._file_VK[number], (file, file + 1))
            self._address_VK[number, first:end] = 0


class RangeReader:
    """Reads windows of a store elsewhere, by range."""

    def __init__(self, store: RemoteStore, sequence_length: int):
        self.store, self.sequence_length = store, sequence_length

    def read(self, domains: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """As :meth:`MappedReader.read`. A read that fails is tried again several times."""
        order = np.lexsort((rows, domains))
        out = np.empty((len(rows), self.sequence_length + 1), self.store.token_dtype)
        room = self.store.windows_in_cache(self.sequence_length)
        for start in range(0, len(order), room):
            some = order[start : start + room]
            self.store.prefetch(domains[some], rows[some], self.sequence_length)
            edges = np.flatnonzero(np.diff(domains[some], prepend=-1, append=-1))
            for begin, end in pairwise(edges.tolist()):
                positions = some[begin:end]
                out[positions] = self._of_domain(int(domains[positions[0]]), rows[positions])
        return out

    def finish(self) -> None:
        """Does nothing, because each read checks its files."""

    def _of_domain(self, domain: int, rows: np.ndarray) -> np.ndarray:
        """The windows `rows` (ascending) of one domain, counting through its volumes."""
        taken, first = [], 0
        for windows in self.store.windows(domain, self.sequence_length):
            begin, end = np.searchsorted(rows, (first, first + len(windows)))
            taken.append(windows.take(rows[begin:end] - first))
            first += len(windows)
        if rows[-1] >= first:
            raise IndexError(f"domain {domain} has {first} windows; there is no row {rows[-1]}.")
        return np.concatenate(taken)
