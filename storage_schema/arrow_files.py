"""Our Arrow and Parquet files, checked before they are used, and mapped.

Arrow trusts what a file says of its arrays: if it claims more values than its buffers hold, Arrow reads memory beyond
them. So types are checked first, then extents, and only then is anything used. An extension type runs whatever Python
code is registered for its name: once Ray Data is imported, a value of Ray's type for Python objects is unpickled when
it is read. None of our files has an extension type at any depth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage_schema.manifest import PASSING, StoreError, UnavailableError


def read_arrow(path: str | Path, schema: pa.Schema | None = None, *, what: str) -> pa.Table:
    """Read an Arrow file, memory-mapped. Nothing is copied, but every offset of strings and lists is checked.

    Args:
        schema: the schema it must have. None leaves the types to the caller, except that extension types are refused.
        what: what the file should be, in the words of an error.

    Raises:
        StoreError: the file is damaged, or is something else.
        UnavailableError: the file could not be read now.
    """
    with _opened(path, schema, what) as file:
        table = file.read_all()
        table.validate(full=True)
    check_no_nulls(table, path)
    return table


def read_batch(
    path: str | Path, schema: pa.Schema, *, number: int = 0, of: int = 1, what: str, full: bool = False
) -> pa.RecordBatch:
    """Read one of an Arrow file's record batches, memory-mapped: only the columns and rows used are read from disk.

    Checks that its buffers hold as many values as it claims. With `full` every offset is checked too, which is needed
    before single values of strings and lists are read.

    Args:
        of: how many batches the file must have.

    Raises:
        StoreError: as :func:`read_arrow`.
    """
    with _opened(path, schema, what) as file:
        if file.num_record_batches != of:
            raise StoreError(f"{path} has {file.num_record_batches} record batches; {what} has {of}.")
        batch = file.get_batch(number)
        batch.validate(full=full)
    check_no_nulls(batch, path)
    return batch


@contextmanager
def _opened(path: str | Path, schema: pa.Schema | None, what: str) -> Iterator[pa.RecordBatchFileReader]:
    """Open an Arrow file of that schema, memory-mapped. Every error while it is read becomes a StoreError."""
    # Closing at once is safe: the mapping lives as long as the arrays, and needs no file descriptor.
    with errors_name(path), pa.memory_map(str(path)) as source:
        file = pa.ipc.open_file(source)
        check_schema(file.schema, schema, path, what=what)
        yield file


@contextmanager
def errors_name(path: str | Path) -> Iterator[None]:
    """Turn every error in the block into a StoreError that names the file."""
    try:
        yield
    except StoreError:
        raise
    except Exception as error:  # a registered extension type may raise anything
        raise _unreadable(path, error) from error


def check_schema(found: pa.Schema, wanted: pa.Schema | None, path: str | Path, *, what: str) -> None:
    """Raise :class:`StoreError` unless the schema is the one wanted and has no extension type."""
    extended = any(has_extension(field.type) for field in found)
    if extended or (wanted is not None and found != wanted):
        columns = ", ".join(f"{field.name}: {field.type}" for field in found)
        raise StoreError(
            f"{path} is not {what}: its columns are {columns[:300] or 'none'}. Rebuild the store."
        )


def has_extension(kind: pa.DataType) -> bool:
    """Whether a type is an extension type, or one is inside it."""
    if isinstance(kind, pa.BaseExtensionType):
        return True
    if isinstance(kind, pa.DictionaryType):  # its value type is not among its fields
        return has_extension(kind.value_type)
    return any(has_extension(kind.field(number).type) for number in range(kind.num_fields))


def read_parquet(path: str | Path, columns: list[str]) -> pa.Table:
    """Read columns of a Parquet file. Raises :class:`StoreError` if one is missing or has an extension type."""
    with errors_name(path):
        found = pq.read_schema(path)
        kinds = pa.schema([found.field(name) for name in columns])
        check_schema(kinds, None, path, what="a table of ours")
        return pq.read_table(path, columns=columns)


def take_parquet(path: str | Path, columns: list[str], rows: np.ndarray) -> pa.Table:
    """Read the rows with these ascending numbers. Only the row groups that hold them are read, one at a time.

    Raises :class:`StoreError` as :func:`read_parquet` does, and for a row beyond the end.
    """
    with errors_name(path), pq.ParquetFile(path) as file:
        kinds = pa.schema([file.schema_arrow.field(name) for name in columns])
        check_schema(kinds, None, path, what="a table of ours")
        edges = np.cumsum([0, *(file.metadata.row_group(n).num_rows for n in range(file.num_row_groups))])
        cuts = np.searchsorted(rows, edges)
        taken = [
            file.read_row_group(group, columns=columns).take(pa.array(rows[begin:end] - edges[group]))
            for group, (begin, end) in enumerate(pairwise(cuts.tolist()))
            if begin < end
        ]
        if cuts[-1] < len(rows):
            raise StoreError(f"{path} has {edges[-1]} rows; there is no row {rows[-1]}.")
        return pa.concat_tables([kinds.empty_table(), *taken])


def place_of_values(lists: pa.LargeListArray, buffer: pa.Buffer) -> int:
    """The byte of a file, mapped as `buffer`, at which the values of its column of lists begin."""
    return lists.values.buffers()[1].address - buffer.address


def values_are_at(at: int, count: int, itemsize: int, size: int, read: Callable[[int, int], bytes]) -> bool:
    """Whether the values of a column of large lists can begin at the byte `at` of a file of `size` bytes.

    Right before them lie the lists' offsets, of which the last is the number of values.

    Args:
        read: returns the bytes [start, stop) of the file.
    """
    inside = 8 < at <= size - count * itemsize and at % 8 == 0
    return inside and read(at - 8, at) == count.to_bytes(8, "little")


class MappedFile:
    """A file, memory-mapped until :meth:`unmap`, and its state when it was opened. It holds no file descriptor.

    Args:
        size: the bytes that it must have.

    Raises:
        StoreError: it is missing, cannot be read, or has another size.
    """

    def __init__(self, path: Path, size: int):
        self.path, self._size, self._state = path, size, _state(path)
        self._buffer: pa.Buffer | None = self._map()

    @property
    def buffer(self) -> pa.Buffer:
        """The bytes, mapped again if they were unmapped. Raises :class:`StoreError` as :meth:`check` does."""
        if self._buffer is None:
            self.check()
            self._buffer = self._map()
        return self._buffer

    def read(self, start: int, stop: int) -> bytes:
        """The bytes [start, stop)."""
        return bytes(self.buffer[start:stop])

    def unmap(self) -> None:
        """Drop this object's reference to the mapping. Arrays that others hold stay valid."""
        self.check()
        self._buffer = None

    def check(self) -> None:
        """Raise :class:`StoreError` if the file is no longer the one that was opened."""
        if _state(self.path) != self._state:
            raise StoreError(
                f"{self.path} was changed or replaced while it was read. Was the store rebuilt? Audit it (soe audit), "
                "and resume."
            )

    def _map(self) -> pa.Buffer:
        with errors_name(self.path), pa.memory_map(str(self.path)) as source:
            if source.size() != self._size:
                raise StoreError(
                    f"{self.path} has {source.size()} bytes, its manifest says {self._size}. Rebuild the store."
                )
            return source.read_buffer()


def _state(path: Path) -> tuple[int, int, int] | None:
    """Inode, size and time of change; None if the file is missing."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def check_no_nulls(found: pa.Table | pa.RecordBatch, path: str | Path) -> None:
    """Raise :class:`StoreError` if a value is null: NumPy would turn whole numbers into floats with NaN."""
    for name, column in zip(found.schema.names, found.columns, strict=True):
        if column.null_count:
            raise StoreError(f"{path} has {column.null_count} nulls in {name}; there must be none.")


def _unreadable(path: str | Path, error: Exception) -> StoreError:
    """The error to raise. Arrow raises an OSError for a damaged file too, but without an errno."""
    passing = isinstance(error, OSError) and error.errno in PASSING
    return (UnavailableError if passing else StoreError)(f"cannot read {path}: {_short(error)}")


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
