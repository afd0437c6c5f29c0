"""Documents → passages on disk, in three steps that can each be resumed.

1. *Extract* (``extraction.py``): each group of corpus files becomes a shard of passages (in parallel).
2. *Select* (``selection.py``): decide which rows of which shards go to which part (in parallel, from hashes).
3. *Write*: each part gathers its rows from the shards (in parallel).

The manifest counts what became of every document and passage (``pipeline/corpus/accounts.py``).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.corpus.accounts import Losses, Tally, account, account_lines
from pipeline.corpus.defaults import MAX_DAMAGED_FILES
from pipeline.corpus.documents import Corpus
from pipeline.corpus.large_files import bounded_groups
from pipeline.passages.extraction import extract_group
from pipeline.passages.parts import Part, rows_of
from pipeline.passages.selection import NothingLeft, SelectedPassages, Selection, select_passages
from pipeline.tasks import Report, ignore_progress, run_tasks
from storage_schema.arrow_files import read_parquet, take_parquet
from storage_schema.aside import written_aside
from storage_schema.corpus import PASSAGES, SPLITS, part_name
from storage_schema.errors import UserError
from storage_schema.manifest import Manifest
from storage_schema.stage import Stage

GROUP_BYTES = 16 << 20
_GATHERED = pa.schema(list(PASSAGES)[1:])


def build_passages(
    stage: Stage,
    corpus: Corpus,
    selection: Selection,
    *,
    passage_characters: int,
    max_bad_documents: int,
    max_damaged_files: int = MAX_DAMAGED_FILES,
    present: Sequence[Path] = (),
    report: Report = ignore_progress,
) -> Manifest:
    """Build the ``passages`` stage, in the running Ray session.

    Args:
        present: the part files that the store already has, if the documents are added to a store.
        report: progress in files of the corpus. One that was cut and is to be written counts as half.

    Raises:
        ValueError: more than `max_bad_documents` documents or `max_damaged_files` files cannot be read, no document
            is left, or a held-out source is not in the corpus.
    """
    scratch = _prepare(stage, corpus)
    groups = bounded_groups(corpus, GROUP_BYTES, scratch / "pieces.json")
    shards = [scratch / f"shard-{number:05d}.parquet" for number in range(len(groups))]
    files = len(corpus.files)
    losses = Losses(max_bad_documents=max_bad_documents, max_damaged_files=max_damaged_files)
    if not corpus.bad_documents_are_errors:
        losses = Losses(max_bad_documents=None, max_damaged_files=None)
    tallies = run_tasks(
        extract_group,
        [
            (replace(corpus, files=group, not_read={}), str(shard), passage_characters, losses)
            for (_, group), shard in zip(groups, shards, strict=True)
        ],
        weights=[sum(file.bytes for file in group) for _, group in groups],
        report=lambda done, total: report(files * done // (2 * total), files),
    )
    tally = Tally.total(tallies)
    if error := losses.error(tally, corpus.uri):
        raise error
    selected = _select(tally, corpus, shards, selection, scratch, present)
    characters = run_tasks(
        write_part,
        [
            (
                part,
                selected.decisions,
                [(shards[s], groups[s][0]) for s, _, _ in part.shards],
                _path(stage, part),
            )
            for part in selected.parts
        ],
        report=lambda done, parts: report(files * (parts + done) // (2 * parts), files),
    )
    pq.write_table(selected.sources, stage.work / "sources.parquet")
    pairs = zip(selected.parts, characters, strict=True)
    counts = {
        **selected.counts,
        "train_characters": sum(length for part, length in pairs if part.split == "train"),
        "corpus_files": files,
        "corpus_digest": corpus.digest,
        "documents": tally.documents,
        "characters": tally.characters,
        **account(tally, selected.documents, selected.counts, corpus.not_read),
    }
    return stage.finish(counts, run=run_tasks)


def write_part(part: Part, decisions: Path, shards: Sequence[tuple[Path, int]], path: Path) -> int:
    """Gather one part's passages from its shards and write it, unless it is there; return its characters.

    Args:
        shards: each with the number of its group of files. Shards of one group are joined into one chunk, because
            Parquet's bytes depend on where chunks end and must not depend on where a large file was cut.
    """
    if path.exists():
        return _characters(read_parquet(path, columns=["text"]))
    columns = ["document_id", "source", "text", "text_hash"]
    gathered: dict[int, list[pa.Table]] = {}
    for (shard, group), rows in zip(shards, rows_of(part, decisions), strict=True):
        gathered.setdefault(group, []).append(take_parquet(shard, columns, rows).cast(_GATHERED))
    table = pa.concat_tables(pa.concat_tables(tables).combine_chunks() for tables in gathered.values())
    ids = (np.int64(part.number) << 32) + np.arange(len(table), dtype=np.int64)
    table = pa.Table.from_arrays([pa.chunked_array([ids]), *table.columns], schema=PASSAGES)
    with written_aside(path) as aside:
        pq.write_table(table, aside, compression="zstd", compression_level=1)
    return _characters(table)


def _characters(table: pa.Table) -> int:
    return pc.sum(pc.utf8_length(table["text"])).as_py()


def _prepare(stage: Stage, corpus: Corpus) -> Path:
    """The scratch folder of this corpus. Work on a corpus with another digest (it may have changed) is removed."""
    scratch = stage.scratch / f"shards-{corpus.digest[:16]}"
    splits = [stage.work / split for split in SPLITS]
    if not scratch.exists():
        # Earlier releases put scratch beside the splits, and had other shards.
        for old in [stage.scratch, *stage.work.glob("extracted-*"), *splits]:
            shutil.rmtree(old, ignore_errors=True)
    for folder in (scratch, *splits):
        folder.mkdir(parents=True, exist_ok=True)
    return scratch


def _path(stage: Stage, part: Part) -> Path:
    return stage.work / part.split / part_name(part.number, "parquet")


def _select(
    tally: Tally,
    corpus: Corpus,
    shards: Sequence[Path],
    selection: Selection,
    scratch: Path,
    present: Sequence[Path],
) -> SelectedPassages:
    """:func:`select_passages`, with an error that says what became of the corpus if nothing is left to train on."""
    try:
        if not tally.documents:
            raise NothingLeft({})
        return select_passages(shards, selection, scratch, present=present, run=run_tasks)
    except NothingLeft as error:
        counts = account(tally, {"with text": tally.documents}, error.counts, corpus.not_read)
        held_out = error.counts.get("held_out_passages", 0) + error.counts.get(
            "held_out_duplicates_dropped", 0
        )
        known = (
            ": it has no text that the store has not already" if error.counts.get("present_dropped") else ""
        )
        raise UserError(
            f"The corpus {corpus.uri} leaves no passage to train on{known}. {' '.join(account_lines(counts))} "
            f"Give other text{', or hold out less (held_out_sources, held_out_fraction)' if held_out else ''}."
        ) from error
