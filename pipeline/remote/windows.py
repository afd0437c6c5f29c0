"""The windows of one domain in one volume of a store elsewhere: where they lie in the file, read by range.

Legend: L tokens in a sequence, m windows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from pipeline.remote.block_cache import Blocks
from pipeline.remote.files import BLOCK_BYTES, RemoteFile

GATHERED_BLOCKS = 256
"""Windows are gathered in groups that lie in at most this many blocks (16 MiB), however many are asked for at once."""


class Store(Protocol):
    """What the windows ask of :class:`~pipeline.remote.store.RemoteStore`."""

    @property
    def token_dtype(self) -> np.dtype: ...

    def blocks(self, wanted: Mapping[RemoteFile, np.ndarray]) -> Blocks: ...

    def tokens_at(self, number: int, domain: int) -> int: ...


class RemoteWindows:
    """The windows of one domain in one volume, read by range.

    Args:
        place: the numbers of the volume and of the domain.
        file: that they lie in.
        tokens: how many the domain has there.
    """

    def __init__(
        self, store: Store, place: tuple[int, int], file: RemoteFile, tokens: int, sequence_length: int
    ):
        self.store, self.place, self.file = store, place, file
        self.step = sequence_length * store.token_dtype.itemsize
        self.width = (sequence_length + 1) * store.token_dtype.itemsize
        self.span = blocks_touched(self.width)
        self._length = (tokens - 1) // sequence_length

    def __len__(self) -> int:
        return self._length

    @property
    def tokens_at(self) -> int:
        """The byte of the first token in the file."""
        return self.store.tokens_at(*self.place)

    def blocks_of(self, rows: np.ndarray) -> np.ndarray:
        """int64, ascending: the numbers of the blocks that these windows lie in."""
        starts = self.tokens_at + rows * self.step
        numbers = starts[:, None] // BLOCK_BYTES + np.arange(self.span)
        return np.unique(numbers[numbers * BLOCK_BYTES < starts[:, None] + self.width])

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Read the windows `rows`: ``[m, L + 1]`` of the store's token type. Raises as :meth:`gather` does."""
        out = np.empty((len(rows), self.width // self.store.token_dtype.itemsize), self.store.token_dtype)
        self.gather(rows, out)
        return out

    def gather(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Fill `out`, C-contiguous ``[m, L + 1]`` of the store's token type, with the windows `rows`, int64[m].

        Raises:
            StoreError: the partition is missing, was truncated or replaced, or could not be read after several
                attempts; the message names the file.
            IndexError: there is no such window.
        """
        assert out.dtype == self.store.token_dtype and out.shape == (len(rows), self.width // out.itemsize)
        if not len(rows):
            return
        if rows.min() < 0 or rows.max() >= len(self):
            raise IndexError(
                f"domain {self.place[1]} has {len(self)} windows in {self.file.uri}; asked for {rows.min()} to "
                f"{rows.max()}."
            )
        bytes_mw = out.view(np.uint8)
        for positions in self._groups(rows):
            blocks = self.store.blocks({self.file: self.blocks_of(rows[positions])})
            starts = self.tokens_at + rows[positions] * self.step
            for position, start in zip(positions.tolist(), starts.tolist(), strict=True):
                self._copy(blocks, start, bytes_mw[position])

    def _groups(self, rows: np.ndarray) -> list[np.ndarray]:
        """The positions in `rows`, in the order of the file, in groups that lie in few blocks each."""
        order = np.argsort(rows, kind="stable")
        _, rank = np.unique((self.tokens_at + rows[order] * self.step) // BLOCK_BYTES, return_inverse=True)
        group = rank // max(1, GATHERED_BLOCKS // self.span)
        return np.split(order, np.flatnonzero(np.diff(group)) + 1)

    def _copy(self, blocks: Blocks, start: int, out_w: np.ndarray) -> None:
        done = 0
        while done < self.width:
            number, at = divmod(start + done, BLOCK_BYTES)
            block = blocks[self.file.path, number]
            count = min(self.width - done, BLOCK_BYTES - at)
            out_w[done : done + count] = np.frombuffer(block, np.uint8, count, at)
            done += count


def blocks_touched(width: int) -> int:
    """The largest number of blocks that a window of this many bytes can lie in."""
    return (width - 2) // BLOCK_BYTES + 2
