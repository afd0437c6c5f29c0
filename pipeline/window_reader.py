"""Reading the windows that a plan names from a store's partitions, many at a time."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

import numpy as np

from storage_schema.domains import DomainStore, Windows

OPEN_PARTITIONS = 16_384
"""Domains kept mapped, which takes no file descriptors; Linux allows a process 65,530 mappings."""
_ROW_BITS = 40


class WindowReader:
    """Reads windows of a store, keeping partitions mapped that were read before."""

    def __init__(self, store: DomainStore, sequence_length: int):
        self.store, self.sequence_length = store, sequence_length
        self._open: OrderedDict[int, list[Windows]] = OrderedDict()

    def read(self, domains: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Windows `rows` of `domains`: [len(rows), L + 1] of the store's token type.

        Raises:
            StoreError: a partition is missing, damaged, or was changed while it was read; it is named.
        """
        self.store.prefetch(domains, rows, self.sequence_length)
        # By domain, and in the order they lie in its file.
        order = np.argsort((domains << _ROW_BITS) + rows)
        domains, rows = domains[order], rows[order]
        edges = np.flatnonzero(np.diff(domains, prepend=-1, append=-1)).tolist()
        out = items = None
        for begin, end in pairwise(edges):
            taken = self._take(int(domains[begin]), rows[begin:end])
            if out is None:
                out = np.empty((len(rows), self.sequence_length + 1), taken.dtype)
                items = _as_items(out)
            items[order[begin:end]] = _as_items(taken)
        return out

    def _take(self, domain: int, rows: np.ndarray) -> np.ndarray:
        """Windows `rows`, ascending, of one domain: those of its first part come first."""
        taken, first = [], 0
        for windows in self._windows(domain):
            begin, end = np.searchsorted(rows, (first, first + len(windows)))
            if begin < end:
                taken.append(windows.take(rows[begin:end] - first))
            first += len(windows)
        if rows[-1] >= first:
            raise IndexError(f"domain {domain} has {first} windows; row {rows[-1]} is none.")
        return taken[0] if len(taken) == 1 else np.concatenate(taken)

    def _windows(self, domain: int) -> list[Windows]:
        if domain in self._open:
            self._open.move_to_end(domain)
        else:
            if len(self._open) >= OPEN_PARTITIONS:
                self._open.popitem(last=False)
            self._open[domain] = self.store.windows(domain, self.sequence_length)
        return self._open[domain]


def _as_items(windows: np.ndarray) -> np.ndarray:
    """Each window as one item of bytes, [m]: copied as one piece."""
    return windows.view(np.dtype((np.void, windows.shape[1] * windows.itemsize)))[:, 0]
