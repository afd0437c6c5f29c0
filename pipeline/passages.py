"""Documents → passages on disk, in three steps that each can be resumed.

1. *Extract*: every group of corpus files becomes one shard of passages with hashes (parallel).
2. *Select* (``selection.py``): which rows of which shards go to which part (one process, hashes only).
3. *Write*: every part gathers its rows from the shards (parallel).

Cut, dropped and kept passages are all counted in the manifest.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpora import BadDocument, Corpus, CorpusFile, read_documents
from pipeline.cutting import cut_passages, text_hash
from pipeline.selection import Part, Selection, select_passages
from pipeline.tasks import Report, ignore_progress, run_tasks
from storage_schema.corpus import PASSAGES, part_name
from storage_schema.manifest import Manifest, Stage

GROUP_BYTES = 16 << 20
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


def build_passages(
    stage: Stage,
    corpus: Corpus,
    selection: Selection,
    *,
    passage_characters: int,
    max_bad_documents: int,
    report: Report = ignore_progress,
) -> Manifest:
    """Build the ``passages`` stage.

    Raises:
        ValueError: more than `max_bad_documents` documents cannot be read, no document is left, or a
            held-out source is not in the corpus.
    """
    scratch = stage.work / f"extracted-{corpus.digest[:16]}"
    scratch.mkdir(exist_ok=True)
    groups = corpus.groups(GROUP_BYTES)
    shards = [scratch / f"shard-{number:05d}.parquet" for number in range(len(groups))]
    summaries = run_tasks(
        extract_group,
        [
            (corpus, group, str(shard), passage_characters, max_bad_documents)
            for group, shard in zip(groups, shards, strict=True)
        ],
        report=report,
        weights=[len(group) for group in groups],
    )
    bad_documents = _check_bad_documents(summaries, corpus, max_bad_documents)
    plan = select_passages(shards, selection)
    for split in ("train", "held_out"):
        (stage.work / split).mkdir(exist_ok=True)
    run_tasks(
        write_part,
        [(part, [str(shard) for shard in shards], str(_part_path(stage.work, part))) for part in plan.parts],
        report=report,
    )
    pq.write_table(plan.sources, stage.work / "sources.parquet")
    shutil.rmtree(scratch)
    counts = {
        **plan.counts,
        "corpus_files": len(corpus.files),
        "corpus_digest": corpus.digest,
        "documents": sum(summary["documents"] for summary in summaries),
        "characters": sum(summary["characters"] for summary in summaries),
        "bad_documents": bad_documents,
        "bad_documents_named": [named for summary in summaries for named in summary["bad"]][
            :BAD_DOCUMENTS_NAMED
        ],
    }
    return stage.finish(counts)


def extract_group(
    corpus: Corpus, files: tuple[CorpusFile, ...], shard: str, passage_characters: int, max_bad_documents: int
) -> dict:
    """Read and cut a group of files into one shard; the summary is kept in the shard's own metadata."""
    if os.path.exists(shard):
        return json.loads(pq.read_schema(shard).metadata[_SUMMARY])
    summary: dict = {"documents": 0, "characters": 0, "bad_documents": 0, "bad": []}
    rows: list[tuple] = []
    pending = 0
    with pq.ParquetWriter(shard + ".aside", EXTRACTED, compression="zstd", compression_level=1) as writer:
        for document in (document for file in files for document in read_documents(corpus, file)):
            if isinstance(document, BadDocument):
                summary["bad_documents"] += 1
                if summary["bad_documents"] <= BAD_DOCUMENTS_NAMED:
                    summary["bad"].append(f"{document.where}: {document.problem}")
                if corpus.bad_documents_are_errors and summary["bad_documents"] > max_bad_documents:
                    break
                continue
            summary["documents"] += 1
            summary["characters"] += len(document.text)
            document_hash = text_hash(document.document_id)
            for passage in cut_passages(document.text, passage_characters):
                rows.append(
                    (document.document_id, document.source, passage, document_hash, text_hash(passage))
                )
                pending += len(passage)
            if pending >= FLUSH_CHARACTERS:
                writer.write_table(_table(rows))
                rows, pending = [], 0
        writer.write_table(_table(rows))
        writer.add_key_value_metadata({_SUMMARY: json.dumps(summary)})
    os.replace(shard + ".aside", shard)
    return summary


def write_part(part: Part, shards: list[str], path: str) -> None:
    """Gather one part's passages from the shards and write it, unless it is there already."""
    if os.path.exists(path):
        return
    columns = ["document_id", "source", "text"]
    gathered = [
        pq.read_table(shards[number], columns=columns).take(pa.array(rows))
        for number, rows in part.rows_of_shard
    ]
    table = pa.concat_tables(gathered)
    ids = (np.int64(part.number) << 32) + np.arange(len(table), dtype=np.int64)
    columns_in_order = [pa.array(ids), *(table[name].cast(PASSAGES.field(name).type) for name in columns)]
    table = pa.Table.from_arrays([*map(_one_chunk, columns_in_order)], schema=PASSAGES)
    pq.write_table(table, path + ".aside", compression="zstd", compression_level=1)
    os.replace(path + ".aside", path)


def part_files(folder: str | Path, split: str) -> list[Path]:
    """The part files of one split of a finished ``passages`` folder, in order."""
    return sorted((Path(folder) / split).glob("part-*.parquet"))


def held_out_texts(folder: str | Path, source: str, *, limit: int | None = None) -> list[str]:
    """Held-out passages of one source, in the order of their ids.

    Args:
        folder: the store's ``passages`` folder.
        limit: return at most so many.
    """
    texts: list[str] = []
    for path in part_files(folder, "held_out"):
        texts += pq.read_table(path, columns=["text"], filters=[("source", "=", source)])["text"].to_pylist()
        if limit is not None and len(texts) >= limit:
            return texts[:limit]
    return texts


def _part_path(work: Path, part: Part) -> Path:
    return work / part.split / part_name(part.number, "parquet")


def _table(rows: list[tuple]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(EXTRACTED)
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, EXTRACTED, strict=True)],
        schema=EXTRACTED,
    )


def _one_chunk(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _check_bad_documents(summaries: list[dict], corpus: Corpus, limit: int) -> int:
    total = sum(summary["bad_documents"] for summary in summaries)
    if corpus.bad_documents_are_errors and total > limit:
        first = "; ".join([named for summary in summaries for named in summary["bad"]][:3])
        raise ValueError(
            f"{total} documents or more of {corpus.uri} cannot be read, max_bad_documents is {limit}. First: "
            f"{first}. Mend or remove them, name the field with text_field, or raise max_bad_documents."
        )
    return total
