"""A group of corpus files → one shard of passages with their hashes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpora import BadDocument, Corpus, read_documents
from pipeline.cutting import cut_passages, text_hash
from storage_schema.aside import written_aside

FLUSH_CHARACTERS = 8 << 20
BAD_DOCUMENTS_NAMED = 10
EXTRACTED = pa.schema(
    [
        pa.field("document_id", pa.string()),
        pa.field("source", pa.dictionary(pa.int32(), pa.string())),
        pa.field("text", pa.large_string()),
        pa.field("document_hash", pa.uint64()),
        pa.field("text_hash", pa.uint64()),
    ]
)
_SUMMARY = b"summary"


def extract_group(corpus: Corpus, shard: str, passage_characters: int, max_bad_documents: int) -> dict:
    """Read and cut the files of `corpus`, which are one group of a larger one, into `shard`, unless it is there.

    Returns:
        ``documents``, ``characters``, ``bad_documents`` and the first ``bad`` ones by file and line; it is
        kept in the shard's own metadata. Beyond `max_bad_documents` the work is given up and no shard made.
    """
    if os.path.exists(shard):
        return json.loads(pq.read_metadata(shard).metadata[_SUMMARY])
    summary: dict = {"documents": 0, "characters": 0, "bad_documents": 0, "bad": []}
    with suppress(_TooManyBad), written_aside(shard) as aside:
        with pq.ParquetWriter(aside, EXTRACTED, compression="zstd", compression_level=1) as writer:
            for rows in _batches_of_passages(corpus, passage_characters, max_bad_documents, summary):
                writer.write_table(_table(rows))
            writer.add_key_value_metadata({_SUMMARY: json.dumps(summary)})
    return summary


def too_many_bad(bad_documents: int, corpus: Corpus, limit: int) -> bool:
    """Whether so many unreadable documents are an error in this corpus."""
    return corpus.bad_documents_are_errors and bad_documents > limit


class _TooManyBad(Exception):
    """The work is given up."""


def _batches_of_passages(
    corpus: Corpus, passage_characters: int, max_bad_documents: int, summary: dict
) -> Iterator[list[tuple]]:
    """Yield lists of rows of ``EXTRACTED``, counting in `summary`."""
    rows: list[tuple] = []
    pending = 0
    for document in (document for file in corpus.files for document in read_documents(corpus, file)):
        if isinstance(document, BadDocument):
            summary["bad_documents"] += 1
            if len(summary["bad"]) < BAD_DOCUMENTS_NAMED:
                summary["bad"].append(f"{document.where}: {document.problem}")
            if too_many_bad(summary["bad_documents"], corpus, max_bad_documents):
                raise _TooManyBad
        else:
            summary["documents"] += 1
            summary["characters"] += len(document.text)
            document_hash = text_hash(document.document_id)
            for passage in cut_passages(document.text, passage_characters):
                hashes = (document_hash, text_hash(passage))
                rows.append((document.document_id, document.source, passage, *hashes))
                pending += len(passage)
        if pending >= FLUSH_CHARACTERS:
            yield rows
            rows, pending = [], 0
    yield rows


def _table(rows: list[tuple]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(EXTRACTED)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, EXTRACTED, strict=True)]
    return pa.table(arrays, schema=EXTRACTED)
