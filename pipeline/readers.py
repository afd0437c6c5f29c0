"""One reader for each format of corpus file. A reader never raises for bad content: it reports it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from pipeline.corpora import BadDocument, Corpus, CorpusFile, Document

Reader = Callable[[fs.FileSystem, CorpusFile, Corpus], Iterator[Document | BadDocument]]
BUFFER_BYTES = 1 << 16


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
        with filesystem.open_input_stream(file.path, compression=file.compression) as stream:
            return stream.read().decode("utf-8")
    except UnicodeDecodeError as error:
        return BadDocument(file.name, f"not UTF-8: byte {error.object[error.start]:#04x} at {error.start}")
    except OSError as error:
        return BadDocument(file.name, _reason(error))


def read_lines(
    filesystem: fs.FileSystem, file: CorpusFile, corpus: Corpus
) -> Iterator[Document | BadDocument]:
    """Each line is a JSON object with the text in ``corpus.text_field``."""
    number = 0
    try:
        with filesystem.open_input_stream(file.path, compression=file.compression) as stream:
            for number, line in enumerate(io.BufferedReader(stream, BUFFER_BYTES), start=1):
                if line.strip():
                    yield from _parse_line(line, f"{file.name}:{number}", file, corpus)
    except OSError as error:
        yield BadDocument(f"{file.name}:{number + 1}", _reason(error))


def read_parquet(
    filesystem: fs.FileSystem, file: CorpusFile, corpus: Corpus
) -> Iterator[Document | BadDocument]:
    """Each row is a document."""
    row = 0
    try:
        with pq.ParquetFile(filesystem.open_input_file(file.path)) as table:
            names = table.schema_arrow.names
            if corpus.text_field not in names:
                yield BadDocument(file.name, f"no column {corpus.text_field!r}; it has {', '.join(names)}")
                return
            columns = [name for name in (corpus.text_field, corpus.source_field) if name in names]
            for batch in table.iter_batches(batch_size=1024, columns=columns):
                for record in batch.to_pylist():
                    yield from _document(record, f"{file.name}:{row}", file, corpus)
                    row += 1
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        yield BadDocument(f"{file.name}:{row}", _reason(error))


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


def _reason(error: Exception) -> str:
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
    "code": _environment_reader("written_text"),
    "manual": _environment_reader("manual_text"),
}
