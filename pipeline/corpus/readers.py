"""One reader for each format of corpus file. A reader never raises for bad content: it reports it.

It does raise OSError where the file's place fails, not the file: a lost connection must not pass for a corpus of
bad documents.
"""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from pipeline.corpus.decoding import MARK, BadText, check_text, decode, encoding_of, printable, source_name
from pipeline.corpus.documents import BadDocument, Corpus, CorpusFile, DamagedFile, Document
from pipeline.corpus.environment import manual_text, written_text
from pipeline.corpus.raw_files import BROKEN, AsUtf8, LostAccess, Watched, open_raw, open_unpacked
from pipeline.places.locations import open_filesystem
from pipeline.places.retries import with_retries
from storage_schema.arrow_files import has_extension

Found = Iterator[Document | BadDocument]
Reader = Callable[[fs.FileSystem, CorpusFile, Corpus], Found]
BUFFER_BYTES = 1 << 16
ROWS = 1024
"""Of a table, turned into documents at a time."""
TEXT_BYTES, LINE_BYTES = 256 << 20, 64 << 20
"""The largest text file, and line of JSON, that is held: a few kilobytes unpack to a line without end."""
SKIPPED_BYTES = 4 << 30
"""Of a line that is larger, read to find where the next one begins."""
_ONE_VALUE = re.compile(rb"\s*(\[|\{\s*\n)")
"""How JSON begins that is no object a line."""


class OtherShape(Exception):
    """A whole file is not what its name says, or lacks what is asked of it; the message says so."""


def read_file(filesystem: fs.FileSystem, file: CorpusFile, corpus: Corpus) -> Found:
    """The documents of a file, each of them text that can be trained on or named as bad.

    Raises OSError where the file's place fails.
    """
    documents = 0
    try:
        for one in READERS[file.format](filesystem, file, corpus):
            if isinstance(one, DamagedFile):
                one = replace(one, problem=f"{one.problem}; {documents:,} documents of it were read before")
            one = _checked(one)
            documents += isinstance(one, Document)
            yield one
    except LostAccess as error:
        # Of a machine's own files some are for others to read.
        if corpus.bad_documents_are_errors or not isinstance(error.__cause__, PermissionError):
            raise
        yield _damaged(file, error)


def _checked(one: Document | BadDocument) -> Document | BadDocument:
    if isinstance(one, BadDocument):
        return replace(one, where=printable(one.where), problem=printable(one.problem))
    if one.text.startswith(MARK):
        one = replace(one, text=one.text.removeprefix(MARK))
    try:
        check_text(one.text)
    except BadText as error:
        return BadDocument(one.document_id, str(error), error.reason)
    return one


def read_text(filesystem: fs.FileSystem, file: CorpusFile, corpus: Corpus) -> Found:
    """The whole file is one document."""
    text = load_text(filesystem, file)
    if isinstance(text, BadDocument):
        yield text
    else:
        yield Document(document_id=file.name, source=file.source, text=text)


def load_text(filesystem: fs.FileSystem, file: CorpusFile) -> str | BadDocument:
    """A file's text, decompressed and decoded: UTF-8, or what its byte-order mark names."""
    try:
        with open_unpacked(filesystem, file) as stream:
            content = stream.read(TEXT_BYTES + 1)
        if len(content) > TEXT_BYTES:
            return BadDocument(file.name, _too_large("the text", TEXT_BYTES), "too large")
        return decode(content)
    except BadText as error:
        return BadDocument(file.name, str(error), error.reason)
    except LostAccess:
        raise
    except BROKEN as error:
        return _damaged(file, error)


def read_lines(filesystem: fs.FileSystem, file: CorpusFile, corpus: Corpus) -> Found:
    """Each line is a JSON object with the text in ``corpus.text_field``."""
    number = file.before
    try:
        with open_unpacked(filesystem, file) as stream:
            for number, line in enumerate(_lines(_of_utf8(stream, file)), start=file.before + 1):
                where = f"{file.name}:{number}"
                if line is None:
                    yield BadDocument(where, _too_large("the line", LINE_BYTES), "too large")
                elif line.strip():
                    yield _parse_line(line, where, file, corpus)
    except LostAccess:
        raise
    except (OtherShape, *BROKEN) as error:
        yield _damaged(file, error, None if isinstance(error, OtherShape) else number + 1)


def _of_utf8(stream: io.BufferedReader, file: CorpusFile) -> io.BufferedReader:
    """The lines' stream as UTF-8. Raises :class:`OtherShape` where its beginning shows that it holds none."""
    if file.before:
        return stream
    head = stream.peek(4)
    encoding = encoding_of(head)
    if encoding in ("utf-16", "utf-32"):
        stream = io.BufferedReader(AsUtf8(stream, encoding), BUFFER_BYTES)
    elif b"\0" in head[:4]:
        raise OtherShape(
            "holds zero bytes: it is binary, or UTF-16 or UTF-32 without a byte-order mark. Save it as UTF-8"
        )
    if _ONE_VALUE.match(stream.peek(1)[:64].removeprefix(codecs.BOM_UTF8)):
        raise OtherShape(
            "holds one JSON value over the whole file, not an object a line. Make lines of a list with "
            "`jq -c '.[]' FILE > FILE.jsonl`"
        )
    return stream


def _lines(stream: io.BufferedReader) -> Iterator[bytes | None]:
    """The lines; None for one of more than ``LINE_BYTES``, which is not held. The last may be without end."""
    while line := stream.readline(LINE_BYTES + 1):
        if len(line) <= LINE_BYTES:
            yield line
            continue
        skipped = len(line)
        while line and not line.endswith(b"\n"):
            line = stream.readline(BUFFER_BYTES)
            skipped += len(line)
            if skipped > SKIPPED_BYTES:
                raise OtherShape(f"a line of it has more than {SKIPPED_BYTES:,} bytes")
        yield None


def _too_large(what: str, bound: int) -> str:
    return f"{what} has more than {bound:,} bytes. Cut it into several documents"


def _parse_line(line: bytes, where: str, file: CorpusFile, corpus: Corpus) -> Document | BadDocument:
    try:
        record = json.loads(decode(line, "utf-8-sig"))
    except BadText as error:
        return BadDocument(where, str(error), error.reason)
    except (ValueError, RecursionError) as error:
        return BadDocument(where, f"not JSON: {error}", "not JSON")
    if not isinstance(record, dict):
        return BadDocument(where, f"a JSON {type(record).__name__}, not an object", "no JSON object")
    text, source = record.get(corpus.text_field), record.get(corpus.source_field)
    return _document(text, source, where, file, corpus, record)


def read_parquet(filesystem: fs.FileSystem, file: CorpusFile, corpus: Corpus) -> Found:
    """Each row is a document; one row group's columns are in memory at a time."""
    try:
        with open_raw(filesystem, file) as raw, pq.ParquetFile(pa.PythonFile(raw, mode="r")) as table:
            columns = _columns(table.schema_arrow, corpus)
            end = file.before
            # Asked for all row groups at once, pyarrow would fetch them all before the first row.
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
                    yield _damaged(file, f"row group {group}: {_words(problem)}", row, lost=end - row)
    except LostAccess:
        raise
    # A type that someone registered raises what it likes.
    except Exception as error:
        yield _damaged(file, error)


def read_arrow(filesystem: fs.FileSystem, file: CorpusFile, corpus: Corpus) -> Found:
    """Each row of an Arrow stream is a document; one record batch is in memory at a time."""
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
        yield _damaged(file, error, row)


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """In place of a value that cannot be read."""

    problem: str


def _rows(batch: pa.RecordBatch, first: int, file: CorpusFile, corpus: Corpus) -> Found:
    """The documents of a batch, whose rows are numbered from `first`."""
    names = batch.schema.names
    for start in range(0, batch.num_rows, ROWS):
        columns = [_values(column.slice(start, ROWS)) for column in batch.columns]
        for row, values in enumerate(zip(*columns, strict=True), first + start):
            record = dict(zip(names, values, strict=True))
            text, source = record[corpus.text_field], record.get(corpus.source_field)
            yield _document(text, source, f"{file.name}:{row}", file, corpus, names)


def _values(column: pa.Array) -> list:
    """The values of some rows; what is wrong with one loses no other."""
    try:
        # Without this, memory beyond the batch is read where a file claims longer strings than it holds.
        column.validate(full=True)
        return column.to_pylist()
    except Exception as error:
        if isinstance(column, pa.DictionaryArray):
            words, numbers = _values(column.dictionary), _values(column.indices)
            beyond = _Unreadable("it is not in the column's dictionary")
            return [None if n is None else words[n] if n in range(len(words)) else beyond for n in numbers]
        if len(column) == 1:
            return [_Unreadable(_words(error))]
        middle = len(column) // 2
        return _values(column.slice(0, middle)) + _values(column.slice(middle))


def _columns(schema: pa.Schema, corpus: Corpus) -> list[str]:
    """The columns that are read. Raises :class:`OtherShape` for one that is missing, twice there or of no text."""
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
    """Whether values of this type are strings, or bytes that may be UTF-8."""
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    tests = "string large_string string_view binary large_binary binary_view fixed_size_binary null"
    return any(getattr(pa.types, f"is_{name}")(kind) for name in tests.split())


def _document(
    text: object, source: object, where: str, file: CorpusFile, corpus: Corpus, fields: Iterable[str]
) -> Document | BadDocument:
    field = corpus.text_field
    try:
        text = _plain(text)
        if not isinstance(text, str):
            found = "no text" if text is None else f"a {type(text).__name__}"
            names = ", ".join(map(str, fields))
            return BadDocument(where, f"field {field!r} holds {found}; fields: {names}", "no text")
        field = corpus.source_field
        return Document(document_id=where, source=source_name(_plain(source), default=file.source), text=text)
    except BadText as error:
        return BadDocument(where, f"field {field!r}: {error}", error.reason)


def _plain(value: object) -> object:
    if isinstance(value, _Unreadable):
        raise BadText("unreadable", value.problem)
    return decode(value) if isinstance(value, bytes) else value


def _damaged(
    file: CorpusFile, problem: str | Exception, at: int | None = None, *, lost: int = 0
) -> DamagedFile:
    """The file cannot be read from line or row `at` on; none: not at all."""
    words = _words(problem)
    early = re.search("[Tt]runcated|Expected to be able to read|[Uu]nexpected end", words)
    return DamagedFile(
        where=file.name if at is None else f"{file.name}:{at}",
        problem=f"ends early: {words}" if early else words,
        reason="another shape" if isinstance(problem, OtherShape) else "ends early" if early else "damaged",
        lost=lost,
    )


def _words(error: str | Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _environment_reader(cleaned: Callable[[str], str | None], left_out: str) -> Reader:
    def read(filesystem: fs.FileSystem, file: CorpusFile, corpus: Corpus) -> Found:
        text = load_text(filesystem, file)
        if isinstance(text, BadDocument):
            yield text
        elif (kept := cleaned(text)) is not None:
            yield Document(document_id=file.name, source=file.source, text=kept)
        else:
            yield Document(document_id=file.name, source=file.source, text="", left_out=left_out)

    return read


READERS: dict[str, Reader] = {
    "text": read_text,
    "lines": read_lines,
    "parquet": read_parquet,
    "arrow": read_arrow,
    "code": _environment_reader(written_text, "generated, short or a table"),
    "manual": _environment_reader(manual_text, "short"),
}


def read_documents(corpus: Corpus, file: CorpusFile) -> Iterator[Document | BadDocument]:
    """The documents of one file, in order; what cannot be read comes as a :class:`BadDocument`.

    Where the corpus's place fails, the file is opened again, ever later, and read on from where it was.

    Raises ValueError if the place is not reached, or lets us read no longer, after some attempts.
    """
    found: Iterator[Document | BadDocument] | None = None
    done = 0

    def following() -> Document | BadDocument | None:
        nonlocal found
        if found is None:
            found = islice(read_file(open_filesystem(corpus.uri)[0], file, corpus), done, None)
        return next(found, None)

    def begin_again() -> None:
        nonlocal found
        found = None

    while one := with_retries(
        following, uri=file.name, store=corpus.uri, what="The corpus", failed=begin_again
    ):
        yield one
        done += 1
