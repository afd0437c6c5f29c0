"""One reader for each format of corpus file. A reader never raises for bad content: it reports it.

It does raise OSError where the file's place fails, not the file: a lost connection must not pass for a corpus of
bad documents.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from pipeline.corpora import BadDocument, Corpus, CorpusFile, Document
from pipeline.locations import input_options, is_lost_access
from storage_schema.arrow_files import has_extension

Reader = Callable[[fs.FileSystem, CorpusFile, Corpus], Iterator[Document | BadDocument]]
BUFFER_BYTES = 1 << 16
ROWS = 1024
"""Of a table, turned into documents at a time."""
TEXT_BYTES, LINE_BYTES = 256 << 20, 64 << 20
"""The largest text file, and line of JSON, that is held: a few kilobytes unpack to a line without end."""
SKIPPED_BYTES = 4 << 30
"""Of a line that is larger, read to find where the next one begins."""


def read_text(
    filesystem: fs.FileSystem, file: CorpusFile, corpus: Corpus
) -> Iterator[Document | BadDocument]:
    """The whole file is one document."""
    text = load_text(filesystem, file)
    if isinstance(text, BadDocument):
        yield text
    elif text.strip():
        yield Document(document_id=file.name, source=file.source, text=text)


def load_text(filesystem: fs.FileSystem, file: CorpusFile) -> str | BadDocument:
    """A file's text, decompressed and decoded as UTF-8."""
    try:
        with _open_stream(filesystem, file) as stream:
            content = stream.read(TEXT_BYTES + 1)
        if len(content) > TEXT_BYTES:
            return BadDocument(file.name, _too_large("the text", TEXT_BYTES))
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        return BadDocument(file.name, f"not UTF-8: byte {error.object[error.start]:#04x} at {error.start}")
    except (OSError, pa.ArrowException) as error:
        return BadDocument(file.name, _problem(error))


def read_lines(
    filesystem: fs.FileSystem, file: CorpusFile, corpus: Corpus
) -> Iterator[Document | BadDocument]:
    """Each line is a JSON object with the text in ``corpus.text_field``."""
    number = file.before
    try:
        with _open_stream(filesystem, file) as stream:
            for number, line in enumerate(_lines(stream), start=file.before + 1):
                where = f"{file.name}:{number}"
                if line is None:
                    yield BadDocument(where, _too_large("the line", LINE_BYTES))
                elif line.strip():
                    yield from _parse_line(line, where, file, corpus)
    except (OSError, pa.ArrowException) as error:
        yield BadDocument(f"{file.name}:{number + 1}", _problem(error))


def _lines(stream: pa.NativeFile) -> Iterator[bytes | None]:
    """The lines; None for one of more than ``LINE_BYTES``, which is not held. The last may be without end."""
    buffered = io.BufferedReader(stream, BUFFER_BYTES)
    while line := buffered.readline(LINE_BYTES + 1):
        if len(line) <= LINE_BYTES:
            yield line
            continue
        skipped = len(line)
        while line and not line.endswith(b"\n"):
            line = buffered.readline(BUFFER_BYTES)
            skipped += len(line)
            if skipped > SKIPPED_BYTES:
                yield None
                return
        yield None


def _too_large(what: str, bound: int) -> str:
    return f"{what} has more than {bound:,} bytes. Cut it into several documents"


def read_parquet(
    filesystem: fs.FileSystem, file: CorpusFile, corpus: Corpus
) -> Iterator[Document | BadDocument]:
    """Each row is a document; one row group's columns are in memory at a time."""
    yield from _read_rows(_parquet_batches(filesystem, file, corpus), file, corpus)


def read_arrow(
    filesystem: fs.FileSystem, file: CorpusFile, corpus: Corpus
) -> Iterator[Document | BadDocument]:
    """Each row of an Arrow stream is a document; one record batch is in memory at a time."""
    yield from _read_rows(_arrow_batches(filesystem, file, corpus), file, corpus)


class _MissingColumn(Exception):
    """A table has no column of text, or two, or one of a type that is not read; the message says so."""


def _parquet_batches(filesystem: fs.FileSystem, file: CorpusFile, corpus: Corpus) -> Iterator[pa.RecordBatch]:
    with filesystem.open_input_file(file.path) as stream, pq.ParquetFile(stream) as table:
        columns = _columns(table.schema_arrow, corpus)
        # Asked for all row groups at once, pyarrow would fetch them all before the first row.
        groups = range(table.num_row_groups)
        for group in groups[file.piece.begin : file.piece.end] if file.piece else groups:
            yield from table.iter_batches(batch_size=ROWS, row_groups=[group], columns=columns)


def _arrow_batches(filesystem: fs.FileSystem, file: CorpusFile, corpus: Corpus) -> Iterator[pa.RecordBatch]:
    with _open_stream(filesystem, file) as stream, pa.ipc.open_stream(stream) as batches:
        columns = _columns(batches.schema, corpus)
        for batch in batches:
            yield batch.select(columns)


def _columns(schema: pa.Schema, corpus: Corpus) -> list[str]:
    names = schema.names
    if corpus.text_field not in names:
        raise _MissingColumn(f"no column {corpus.text_field!r}; it has {', '.join(names)}")
    for name in (corpus.text_field, corpus.source_field):
        if names.count(name) > 1:
            raise _MissingColumn(f"{names.count(name)} columns {name!r}; there must be one")
        if name in names and has_extension(schema.field(name).type):
            kind = schema.field(name).type
            raise _MissingColumn(
                f"the column {name!r} has the extension type {kind}; save it as plain strings"
            )
    return [name for name in (corpus.text_field, corpus.source_field) if name in names]


def _read_rows(
    batches: Iterator[pa.RecordBatch], file: CorpusFile, corpus: Corpus
) -> Iterator[Document | BadDocument]:
    row = file.before
    try:
        for batch in batches:
            # Without this, memory beyond the batch is read where a file claims longer strings than it holds.
            batch.validate(full=True)
            for start in range(0, batch.num_rows, ROWS):
                for record in batch.slice(start, ROWS).to_pylist():
                    yield from _document(record, f"{file.name}:{row}", file, corpus)
                    row += 1
    except _MissingColumn as error:
        yield BadDocument(file.name, str(error))
    # A type that someone registered raises what it likes, as does a value that has no Python object (a time of the year
    # 200,000).
    except Exception as error:
        yield BadDocument(f"{file.name}:{row}", _problem(error))


def _parse_line(
    line: bytes, where: str, file: CorpusFile, corpus: Corpus
) -> Iterator[Document | BadDocument]:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        yield BadDocument(where, f"not UTF-8: byte {line[error.start]:#04x} at {error.start}")
    except (ValueError, RecursionError) as error:
        yield BadDocument(where, f"not JSON: {error}")
    else:
        if isinstance(record, dict):
            yield from _document(record, where, file, corpus)
        else:
            yield BadDocument(where, f"a JSON {type(record).__name__}, not an object")


def _document(record: dict, where: str, file: CorpusFile, corpus: Corpus) -> Iterator[Document | BadDocument]:
    text = record.get(corpus.text_field)
    if not isinstance(text, str):
        found = "no text" if text is None else f"a {type(text).__name__}"
        yield BadDocument(
            where, f"field {corpus.text_field!r} holds {found}; fields: {', '.join(map(str, record))}"
        )
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        yield BadDocument(where, f"not Unicode text: lone surrogate at {error.start}")
        return
    source = record.get(corpus.source_field)
    if text.strip():
        yield Document(document_id=where, source=file.source if source is None else str(source), text=text)


def _open_stream(filesystem: fs.FileSystem, file: CorpusFile) -> pa.NativeFile:
    options = input_options(file.bytes)
    if file.piece:
        length = file.piece.end - file.piece.begin
        stream = filesystem.open_input_file(file.path).get_stream(file.piece.begin, length)
        return pa.BufferedInputStream(stream, **options)
    return filesystem.open_input_stream(file.path, compression=file.compression, **options)


def _problem(error: Exception) -> str:
    """What is wrong with a file. Raises `error` itself if nothing is, but its place."""
    if is_lost_access(error):
        raise error
    return " ".join(str(error).split()) or type(error).__name__


def _environment_reader(name: str) -> Reader:
    def read(filesystem: fs.FileSystem, file: CorpusFile, corpus: Corpus) -> Iterator[Document | BadDocument]:
        from pipeline import environment

        text = load_text(filesystem, file)
        if isinstance(text, BadDocument):
            yield text
        elif (kept := getattr(environment, name)(text)) is not None:
            yield Document(document_id=file.name, source=file.source, text=kept)

    return read


READERS: dict[str, Reader] = {
    "text": read_text,
    "lines": read_lines,
    "parquet": read_parquet,
    "arrow": read_arrow,
    "code": _environment_reader("written_text"),
    "manual": _environment_reader("manual_text"),
}
