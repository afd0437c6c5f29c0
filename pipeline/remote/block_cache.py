"""A bounded cache of blocks of files, in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable

CACHE_BYTES = 256 << 20
Blocks = dict[tuple[str, int], bytes]
"""Blocks by the path of their file and their number in it."""


class BlockCache:
    """Keeps at most `most_bytes` of blocks and drops those that were not used for the longest time. Threads may share
    it.
    """

    def __init__(self, most_bytes: int = CACHE_BYTES):
        self.most_bytes, self.bytes = most_bytes, 0
        self._lock = threading.Lock()
        self._blocks: OrderedDict[tuple[str, int], bytes] = OrderedDict()

    def get(self, keys: Iterable[tuple[str, int]]) -> Blocks:
        """Those of these blocks that are in the cache."""
        found: Blocks = {}
        with self._lock:
            for key in keys:
                if key in self._blocks:
                    self._blocks.move_to_end(key)
                    found[key] = self._blocks[key]
        return found

    def add(self, blocks: Blocks) -> None:
        """Put blocks into the cache."""
        with self._lock:
            for key, block in blocks.items():
                self.bytes += len(block) - len(self._blocks.pop(key, b""))
                self._blocks[key] = block
            while self.bytes > self.most_bytes:
                self.bytes -= len(self._blocks.popitem(last=False)[1])

    def drop(self, path: str) -> None:
        """Remove all blocks of a file."""
        with self._lock:
            for key in [key for key in self._blocks if key[0] == path]:
                self.bytes -= len(self._blocks.pop(key))
