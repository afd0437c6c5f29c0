"""Readers of tables: each row of a Parquet file or of an Arrow stream is a document."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from pipeline.corpus.documents import Corpus, CorpusFile
from pipeline.corpus.raw_files import LostAccess, Watched, open_raw, open_unpacked
from pipeline.corpus.records import Found, OtherShape, Unreadable, damaged, document_of, in_words
from storage_schema.arrow_files import has_extension

ROWS = 1024
"""Rows that are turned into documents at a time."""


def read_parquet(filesystem: fs.FileSystem, file: CorpusFile, corpus: Corpus) -> Found:
    """Each row is a document. The columns of one row group are in memory at a time."""
    if file.compression:  # Parquet compresses its own columns, and is read from its end
        yield damaged(
            file, OtherShape(f"is Parquet inside {file.compression}, which is not unpacked: unpack it")
        )
        return
    try:
        with open_raw(filesystem, file) as raw, pq.ParquetFile(pa.PythonFile(raw, mode="r")) as table:
            columns = _columns(table.schema_arrow, corpus)
            end = file.before
            # If asked for all row groups at once, pyarrow would fetch them all before giving the first row.
            groups = range(table.num_row_groups)
            for group in groups[file.piece.begin : file.piece.end] if file.piece else groups:
                row, end = end, end + table.metadata.row_group(group).num_rows
                try:
                    for batch in table.iter_batches(batch_size=ROWS, row_groups=[group], columns=columns):
                        yield from _rows(batch, row, file, corpus)
                        row += batch.num_rows
                    problem: str | Exception = f"has only {row} rows of {end}"
                except Exception as error:
                    if raw.failed is not None:
                        raise
                    problem = error
                if row < end:
                    yield damaged(file, f"row group {group}: {in_words(problem)}", row, lost=end - row)
    except LostAccess:
        raise
    # A registered extension type may raise anything.
    except Exception as error:
        yield damaged(file, error)


def read_arrow(filesystem: fs.FileSystem, file: CorpusFile, corpus: Corpus) -> Found:
    """Each row of an Arrow stream is a document. One record batch is in memory at a time."""
    row: int | None = None
    try:
        with open_unpacked(filesystem, file) as stream:
            watched = Watched(stream)
            with pa.ipc.open_stream(pa.PythonFile(watched, mode="r")) as batches:
                columns = _columns(batches.schema, corpus)
                row = 0
                for batch in batches:
                    yield from _rows(batch.select(columns), row, file, corpus)
                    row += batch.num_rows
            if watched.ran_out:
                raise EOFError("Truncated stream: its end is not marked")
    except LostAccess:
        raise
    except Exception as error:
        yield damaged(file, error, row)


def _rows(batch: pa.RecordBatch, first: int, file: CorpusFile, corpus: Corpus) -> Found:
    """The documents of a batch; its first row has the number `first`."""
    names = batch.schema.names
    for start in range(0, batch.num_rows, ROWS):
        columns = [_values(column.slice(start, ROWS)) for column in batch.columns]
        for row, values in enumerate(zip(*columns, strict=True), first + start):
            record = dict(zip(names, values, strict=True))
            text, source = record[corpus.text_field], record.get(corpus.source_field)
            yield document_of(text, source, f"{file.name}:{row}", file, corpus, names)


def _values(column: pa.Array) -> list:
    """The values of some rows. A value that is damaged does not affect the others."""
    try:
        # Without this, a file that claims longer strings than it holds makes Arrow read memory beyond the batch.
        column.validate(full=True)
        return column.to_pylist()
    except Exception as error:
        if isinstance(column, pa.DictionaryArray):
            words, numbers = _values(column.dictionary), _values(column.indices)
            beyond = Unreadable("it is not in the column's dictionary")
            return [None if n is None else words[n] if n in range(len(words)) else beyond for n in numbers]
        if len(column) == 1:
            return [Unreadable(in_words(error))]
        middle = len(column) // 2
        return _values(column.slice(0, middle)) + _values(column.slice(middle))


def _columns(schema: pa.Schema, corpus: Corpus) -> list[str]:
    """The columns to read. Raises :class:`OtherShape` if one is missing, occurs twice, or holds no text."""
    names = schema.names
    if corpus.text_field not in names:
        raise OtherShape(f"no column {corpus.text_field!r}; it has {', '.join(names)}")
    for name in {corpus.text_field, corpus.source_field} & {*names}:
        if names.count(name) > 1:
            raise OtherShape(f"{names.count(name)} columns {name!r}; there must be one")
        kind = schema.field(name).type
        if has_extension(kind):
            raise OtherShape(f"the column {name!r} has the extension type {kind}; save it as plain strings")
        if not _is_text(kind) and not (name == corpus.source_field and pa.types.is_integer(kind)):
            raise OtherShape(f"the column {name!r} has the type {kind}; save it as strings")
    return [name for name in dict.fromkeys((corpus.text_field, corpus.source_field)) if name in names]


def _is_text(kind: pa.DataType) -> bool:
    """Whether values of this type are strings, or bytes that can be UTF-8."""
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    tests = "string large_string string_view binary large_binary binary_view fixed_size_binary null"
    return any(getattr(pa.types, f"is_{name}")(kind) for name in tests.split())
