"""A corpus file's bytes, decompressed, with errors of the place told apart from errors of the file.

All bytes come through :class:`RawFile`. An error there is the place's (a disk, a network, a permission), whatever the
file system calls it. An error in a decompressor or decoder after it is the file's.
"""

from __future__ import annotations

import bz2
import codecs
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import zstandard
from pyarrow import fs

from pipeline.corpus.documents import CorpusFile

BUFFER_BYTES = 1 << 16
ASKED_BYTES = 8 << 20
"""Of a corpus file at a time: a request to S3 takes about 10 ms."""
XZ_BYTES = 256 << 20
"""The most memory that decompressing an .xz may take; a file can ask for gigabytes."""
ZSTD_WINDOW_BYTES = 128 << 20
"""The most memory that decompressing a .zst may take."""
ZSTD_BLOCK_BYTES = 1 << 10
"""Bytes of a .zst that are decompressed at a time, to at most 32 MiB: zstandard itself does not bound its output."""
BROKEN = (
    *(OSError, EOFError, UnicodeDecodeError, pa.ArrowException),
    *(zlib.error, lzma.LZMAError, zstandard.ZstdError),
)
"""Errors raised when the bytes could be read but their content is wrong."""


class LostAccess(OSError):
    """The place where the file lies failed, not the file. The place's own error is the cause."""


class RawFile(io.RawIOBase):
    """The bytes of a file, or of a piece of a file of lines, with random access.

    Raises FileNotFoundError if the file is gone, :class:`LostAccess` if its place fails, and EOFError if it is shorter
    than when it was listed.
    """

    def __init__(self, filesystem: fs.FileSystem, file: CorpusFile):
        self.failed: Exception | None = None
        self._at = 0
        try:
            self._stream = filesystem.open_input_file(file.path)
            size: int = self._stream.size()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise LostAccess(str(error)) from error
        piece = file.piece if file.format == "lines" else None
        self._begin, end = (piece.begin, piece.end) if piece else (0, size)
        self.size = end - self._begin
        listed = end if file.piece else file.bytes
        if size < listed:
            raise EOFError(f"it has {size:,} bytes, and had {listed:,} when it was listed")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        at = offset + (0, self._at, self.size)[whence]
        if at < 0:
            raise ValueError(f"there is no byte {at}")
        self._at = at
        return at

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self.size - self._at)
        if wanted <= 0:
            return 0
        try:
            data = self._stream.read_at(wanted, self._begin + self._at)
            if not data:
                raise OSError(f"no byte came after the first {self._at:,} of {self.size:,}")
        except Exception as error:  # a file system may raise anything
            self.failed = error
            raise
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


@contextmanager
def open_raw(filesystem: fs.FileSystem, file: CorpusFile) -> Iterator[RawFile]:
    """The file's bytes as stored. If reading them failed, raises :class:`LostAccess` in place of any error since."""
    with RawFile(filesystem, file) as raw:
        try:
            yield raw
        except Exception as error:
            if raw.failed is not None:
                raise LostAccess(str(raw.failed)) from raw.failed
            raise error


@contextmanager
def open_unpacked(filesystem: fs.FileSystem, file: CorpusFile) -> Iterator[io.BufferedReader]:
    """The file's bytes in order, decompressed if it is compressed."""
    with open_raw(filesystem, file) as raw:
        packed: io.BufferedReader[Any] = io.BufferedReader(raw, max(1, min(file.bytes, ASKED_BYTES)))
        if file.compression is None:
            yield packed
        else:
            yield io.BufferedReader(_Unpacked(packed, file.compression), BUFFER_BYTES)


class _Readable(io.RawIOBase):
    def readable(self) -> bool:
        return True


class _Gzip:
    """zlib's decompressor with the methods of the others."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(31)  # 31: gzip's header and checksum

    def decompress(self, block: bytes, most: int) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + block, most)

    @property
    def needs_input(self) -> bool:
        return not self._zlib.unconsumed_tail

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data


class _Zstandard:
    """zstandard's decompressor with the methods of the others."""

    def __init__(self) -> None:
        self._zstd = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES).decompressobj()
        self._ready, self._left = io.BytesIO(), 0

    def decompress(self, block: bytes, most: int) -> bytes:
        if block:
            data = self._zstd.decompress(block)
            self._ready, self._left = io.BytesIO(data), len(data)
        data = self._ready.read(most)
        self._left -= len(data)
        return data

    @property
    def needs_input(self) -> bool:
        return not self._left

    @property
    def eof(self) -> bool:
        return self._zstd.eof and not self._left

    @property
    def unused_data(self) -> bytes:
        return self._zstd.unused_data


_UNPACKERS: dict[str, tuple[Callable[[], Any], int]] = {
    "gzip": (_Gzip, BUFFER_BYTES),
    "zstd": (_Zstandard, ZSTD_BLOCK_BYTES),
    "bz2": (bz2.BZ2Decompressor, BUFFER_BYTES),
    "xz": (lambda: lzma.LZMADecompressor(memlimit=XZ_BYTES), BUFFER_BYTES),
}
"""For each compression its decompressor, and how many compressed bytes it is given at a time."""


class _Unpacked(_Readable):
    """The content of compressed streams that follow one another, up to where they break off.

    It never decompresses more than is asked for. pyarrow's own stream loses the last 64 kB before a fault.
    """

    def __init__(self, packed: io.BufferedReader, compression: str):
        self._make, self._block = _UNPACKERS[compression]
        self._packed, self._unpacker = packed, self._make()

    def readinto(self, buffer: Any) -> int:
        data = b""
        while not data:
            block, ended = b"", False
            if self._unpacker.eof:
                # There may be zero bytes between streams and after the last one.
                block = self._unpacker.unused_data.lstrip(b"\0")
                while not block and not ended:
                    block = self._packed.read(self._block)
                    ended = not block
                    block = block.lstrip(b"\0")
                if ended:
                    return 0
                self._unpacker = self._make()
            elif self._unpacker.needs_input:
                block = self._packed.read(self._block)
                ended = not block
            data = self._unpacker.decompress(block, len(buffer))
            if ended and not data and not self._unpacker.eof:
                raise EOFError("Truncated compressed stream")
        buffer[: len(data)] = data
        return len(data)


class AsUtf8(_Readable):
    """A stream of UTF-16 or UTF-32 with a byte-order mark, turned into UTF-8 without one."""

    def __init__(self, stream: io.BufferedReader, encoding: str):
        self._stream, self._decoder = stream, codecs.getincrementaldecoder(encoding)()
        self._ready, self._ended = b"", False

    def readinto(self, buffer: Any) -> int:
        while not self._ready and not self._ended:
            block = self._stream.read(BUFFER_BYTES)
            self._ended = not block
            self._ready = self._decoder.decode(block, self._ended).encode("utf-8")
        data, self._ready = self._ready[: len(buffer)], self._ready[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)


class Watched(_Readable):
    """A stream that remembers whether more bytes were asked for than it holds."""

    def __init__(self, stream: io.BufferedReader):
        self._stream, self.ran_out = stream, False

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self.ran_out |= len(data) < size
        return data
