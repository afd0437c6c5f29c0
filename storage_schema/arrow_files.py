"""Arrow and Parquet files of ours, opened with suspicion.

Arrow believes what a file says of its arrays: of one that claims more values than its buffers hold, memory beyond them
would be read. So extents are checked before anything is used, and types before that. An extension type is whatever
Python has registered for its name: once Ray Data is imported, a value of Ray's type for Python objects is unpickled as
it is looked at, and so runs code. None of our files has such a type, at any depth.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage_schema.manifest import PASSING, StoreError, UnavailableError


def read_arrow(path: str | Path, schema: pa.Schema | None = None, *, what: str) -> pa.Table:
    """An Arrow file, memory-mapped; not copied, but for strings and lists every offset is checked.

    Args:
        schema: that it must have; None leaves the types to the caller, and checks that none is an extension.
        what: it should be, in the words of an error.

    Raises:
        StoreError: it is damaged, or is something else.
        UnavailableError: it could not be read now.
    """
    with _opened(path, schema, what) as file:
        table = file.read_all()
        table.validate(full=True)
    check_no_nulls(table, path)
    return table


def read_batch(path: str | Path, schema: pa.Schema, *, what: str, full: bool = False) -> pa.RecordBatch:
    """An Arrow file of one record batch, memory-mapped: only what is used is read.

    Checked is that its buffers hold what it claims; with `full` every offset too, which strings and lists need before
    their values are looked at one by one.

    Raises:
        StoreError: as :func:`read_arrow`.
    """
    with _opened(path, schema, what) as file:
        if file.num_record_batches != 1:
            raise StoreError(f"{path} has {file.num_record_batches} record batches; {what} has one.")
        batch = file.get_batch(0)
        batch.validate(full=full)
    check_no_nulls(batch, path)
    return batch


@contextmanager
def _opened(path: str | Path, schema: pa.Schema | None, what: str) -> Iterator[pa.RecordBatchFileReader]:
    """The Arrow file of that schema, mapped; whatever goes wrong while it is read is a StoreError."""
    # Closed at once: the mapping lives as long as the arrays, and holds no descriptor.
    with _named(path), pa.memory_map(str(path)) as source:
        file = pa.ipc.open_file(source)
        check_schema(file.schema, schema, path, what=what)
        yield file


@contextmanager
def _named(path: str | Path) -> Iterator[None]:
    """Whatever goes wrong in the block is a StoreError that names the file."""
    try:
        yield
    except StoreError:
        raise
    except Exception as error:  # a type that someone registered raises what it likes
        raise _unreadable(path, error) from error


def check_schema(found: pa.Schema, wanted: pa.Schema | None, path: str | Path, *, what: str) -> None:
    """Raise :class:`StoreError` unless the schema is the one wanted, without extension types in any case."""
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
    if isinstance(kind, pa.DictionaryType):  # which has no fields
        return has_extension(kind.value_type)
    return any(has_extension(kind.field(number).type) for number in range(kind.num_fields))


def read_parquet(path: str | Path, columns: list[str]) -> pa.Table:
    """Columns of a Parquet file. Raises :class:`StoreError` if it has not got them, or one has an extension type."""
    with _named(path):
        found = pq.read_schema(path)
        kinds = pa.schema([found.field(name) for name in columns])
        check_schema(kinds, None, path, what="a table of ours")
        return pq.read_table(path, columns=columns)


def take_parquet(path: str | Path, columns: list[str], rows: np.ndarray) -> pa.Table:
    """Rows of a Parquet file, of ascending numbers: only the row groups that hold them are read, one at a time.

    Raises :class:`StoreError` as :func:`read_parquet`.
    """
    with _named(path), pq.ParquetFile(path) as file:
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
            raise StoreError(f"{path} has {edges[-1]} rows; row {rows[-1]} is none.")
        return pa.concat_tables([kinds.empty_table(), *taken])


def check_no_nulls(found: pa.Table | pa.RecordBatch, path: str | Path) -> None:
    """Raise :class:`StoreError` if a value is missing: numbers would become floats, and missing ones NaN."""
    for name, column in zip(found.schema.names, found.columns, strict=True):
        if column.null_count:
            raise StoreError(f"{path} has {column.null_count} nulls in {name}; there must be none.")


def _unreadable(path: str | Path, error: Exception) -> StoreError:
    """Arrow raises an OSError for a damaged file too, without a number."""
    passing = isinstance(error, OSError) and error.errno in PASSING
    return (UnavailableError if passing else StoreError)(f"cannot read {path}: {_short(error)}")


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
