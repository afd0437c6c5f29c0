"""One reader per format of corpus file. A reader never raises for bad content: it reports it.

It raises OSError only if the file's place fails: a lost connection must not be taken for a corpus of bad documents.
"""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice

from pyarrow import fs

from pipeline.corpus.decoding import MARK, BadText, check_text, decode, encoding_of, printable
from pipeline.corpus.documents import BadDocument, Corpus, CorpusFile, DamagedFile, Document
from pipeline.corpus.environment import manual_text, written_text
from pipeline.corpus.raw_files import BROKEN, AsUtf8, LostAccess, open_unpacked
from pipeline.corpus.records import Found, OtherShape, damaged, document_of
from pipeline.corpus.tables import read_arrow, read_parquet
from pipeline.places.locations import open_filesystem
from pipeline.places.retries import with_retries

Reader = Callable[[fs.FileSystem, CorpusFile, Corpus], Found]
BUFFER_BYTES = 1 << 16
TEXT_BYTES, LINE_BYTES = 256 << 20, 64 << 20
"""The largest text file, and the longest line of JSON, held in memory: a few kilobytes can decompress to gigabytes."""
SKIPPED_BYTES = 4 << 30
"""At most this much of a longer line is read to find where the next line begins."""
_ONE_VALUE = re.compile(rb"\s*(\[|\{\s*\n)")
"""How a file begins that holds one JSON value instead of one object per line."""


def read_file(filesystem: fs.FileSystem, file: CorpusFile, corpus: Corpus) -> Found:
    """The documents of a file. Each is either text that can be trained on, or is reported as bad.

    Raises OSError if the file's place fails.
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
        # Some files of a machine may be closed to this user.
        if corpus.bad_documents_are_errors or not isinstance(error.__cause__, PermissionError):
            raise
        yield damaged(file, error)


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
    """A file's text, decompressed and decoded as UTF-8, or as its byte-order mark says."""
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
        return damaged(file, error)


def read_lines(filesystem: fs.FileSystem, file: CorpusFile, corpus: Corpus) -> Found:
    """Each line is a JSON object; the field ``corpus.text_field`` holds the text."""
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
        yield damaged(file, error, None if isinstance(error, OtherShape) else number + 1)


def _of_utf8(stream: io.BufferedReader, file: CorpusFile) -> io.BufferedReader:
    """The stream as UTF-8. Raises :class:`OtherShape` if its beginning shows that it does not hold JSON lines."""
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
            "holds one JSON value over the whole file, not one object per line. Make lines of a list with "
            "`jq -c '.[]' FILE > FILE.jsonl`"
        )
    return stream


def _lines(stream: io.BufferedReader) -> Iterator[bytes | None]:
    """The lines; None for a line above ``LINE_BYTES``, which is not kept. The last one may lack its line end."""
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
    return document_of(text, source, where, file, corpus, record)


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
    """The documents of one file, in order; a document that cannot be read is a :class:`BadDocument`.

    If the corpus's place fails, the file is opened again, after a longer wait each time, and read on from the document
    it had reached.

    Raises ValueError if the place still fails after several attempts.
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
