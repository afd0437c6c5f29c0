"""Finding the token stream in a file of schema version 1, which held one domain, with two small reads.

Later versions say in the index where it is.
"""

from __future__ import annotations

from collections.abc import Callable

from storage_schema.arrow_files import values_are_at

_TAIL = 512
"""Bytes read from a partition's end; its footer takes 432."""
_MAGIC = b"ARROW1"
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


def find_values(read: Callable[[int, int], bytes], size: int, tokens: int, itemsize: int) -> int | None:
    """The byte at which the values of the last column begin in an Arrow file of one uncompressed record batch.

    The file ends with the batch's body, an end-of-stream marker, the footer, its length (int32) and ``ARROW1``. The
    values are the body's last buffer, padded to 8 bytes. Before them lie the lists' offsets, of which the last is the
    number of tokens. Returns None if any of this does not hold.

    Args:
        read: returns the bytes [start, stop) of the file.
        size: the file's bytes.
        tokens: how many values there are, of `itemsize` bytes each.
    """
    tail_at = max(0, size - _TAIL)
    tail = read(tail_at, size) if size else b""
    end = size - 10 - int.from_bytes(tail[-10:-6], "little", signed=True) - len(_END_OF_STREAM)
    at = end - -(-tokens * itemsize // 8) * 8
    if tail[-6:] != _MAGIC or end > size - 18 or at < 16:
        return None
    marker = tail[end - tail_at :][:8] if end >= tail_at else read(end, end + 8)
    if marker != _END_OF_STREAM or not values_are_at(at, tokens, itemsize, size, read):
        return None
    return at
