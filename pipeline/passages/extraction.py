"""A group of corpus files → one shard: a Parquet file of passages with their hashes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.accounts import Losses, Tally
from pipeline.corpus.documents import Corpus, Document
from pipeline.corpus.readers import read_documents
from pipeline.passages.cutting import cut_passages, text_hash
from storage_schema.aside import written_aside

FLUSH_CHARACTERS = 8 << 20
EXTRACTED = pa.schema(
    [
        pa.field("document_id", pa.string()),
        pa.field("source", pa.dictionary(pa.int32(), pa.string())),
        pa.field("text", pa.large_string()),
        pa.field("document_hash", pa.uint64()),
        pa.field("text_hash", pa.uint64()),
    ]
)
_TALLY = b"tally"


def extract_group(corpus: Corpus, shard: str, passage_characters: int, losses: Losses) -> Tally:
    """Read and cut the files of `corpus` (one group of a larger corpus) into the file `shard`, unless it exists.

    Returns:
        Counts of what the files held; they are also kept in the shard's metadata. If more is lost than `losses` allows,
        the work stops and no shard is written.
    """
    if os.path.exists(shard) and _TALLY in (kept := pq.read_metadata(shard).metadata):
        return Tally(**json.loads(kept[_TALLY]))
    tally = Tally()
    with suppress(_TooMuchLost), written_aside(shard) as aside:
        with pq.ParquetWriter(aside, EXTRACTED, compression="zstd", compression_level=1) as writer:
            for rows in _batches_of_passages(corpus, passage_characters, tally, losses):
                writer.write_table(_table(rows))
            writer.add_key_value_metadata({_TALLY: json.dumps(tally.__dict__)})
    return tally


class _TooMuchLost(Exception):
    """More is lost than is allowed, so the work stops."""


def _batches_of_passages(
    corpus: Corpus, passage_characters: int, tally: Tally, losses: Losses
) -> Iterator[list[tuple]]:
    """Yield rows of ``EXTRACTED``, many at a time, and count them in `tally`."""
    rows: list[tuple] = []
    pending = 0
    found = ((file.name, one) for file in corpus.files for one in read_documents(corpus, file))
    for name, document in found:
        text = tally.take(document, name)
        if text is not None and isinstance(document, Document):
            document_hash = text_hash(document.document_id)
            for passage in tally.take_passages(cut_passages(text, passage_characters)):
                hashes = (document_hash, text_hash(passage))
                rows.append((document.document_id, document.source, passage, *hashes))
                pending += len(passage)
        elif losses.exceeded_by(tally):
            raise _TooMuchLost
        if pending >= FLUSH_CHARACTERS:
            yield rows
            rows, pending = [], 0
    yield rows


def _table(rows: list[tuple]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(EXTRACTED)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, EXTRACTED, strict=True)]
    return pa.table(arrays, schema=EXTRACTED)
