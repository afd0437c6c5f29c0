"""Documents → passages on disk, in three steps that each can be resumed.

1. *Extract* (``extraction.py``): every group of corpus files becomes a shard of passages (parallel).
2. *Select* (``selection.py``): which rows of which shards go to which part (one process, hashes only).
3. *Write*: every part gathers its rows from the shards (parallel).

Cut, dropped and kept passages are all counted in the manifest.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.corpora import Corpus
from pipeline.extraction import BAD_DOCUMENTS_NAMED, extract_group, too_many_bad
from pipeline.selection import Part, Selection, rows_of, select_passages
from pipeline.tasks import Report, ignore_progress, run_tasks
from storage_schema.arrow_files import read_parquet
from storage_schema.corpus import PASSAGES, SPLITS, part_name
from storage_schema.errors import UserError
from storage_schema.manifest import Manifest
from storage_schema.stage import Stage

GROUP_BYTES = 16 << 20


def build_passages(
    stage: Stage,
    corpus: Corpus,
    selection: Selection,
    *,
    passage_characters: int,
    max_bad_documents: int,
    present: Sequence[Path] = (),
    report: Report = ignore_progress,
) -> Manifest:
    """Build the ``passages`` stage, in the running Ray session.

    Args:
        present: the parts that the store has already, if these are documents to be added to it.
        report: progress in files of the corpus, each counted once when cut and once when written.

    Raises:
        ValueError: more than `max_bad_documents` documents cannot be read, no document is left, or a
            held-out source is not in the corpus.
    """
    scratch = _prepare(stage.work, corpus)
    groups = corpus.groups(GROUP_BYTES)
    shards = [scratch / f"shard-{number:05d}.parquet" for number in range(len(groups))]
    files = len(corpus.files)
    summaries = run_tasks(
        extract_group,
        [
            (corpus, group, str(shard), passage_characters, max_bad_documents)
            for group, shard in zip(groups, shards, strict=True)
        ],
        weights=[len(group) for group in groups],
        report=lambda done, _: report(done, 2 * files),
    )
    bad_documents_named = _check_bad_documents(summaries, corpus, max_bad_documents)
    plan = select_passages(shards, selection, scratch, present=present)
    characters = run_tasks(
        write_part,
        [
            (part, plan.decisions, [shards[s] for s, _, _ in part.shards], _part_path(stage.work, part))
            for part in plan.parts
        ],
        report=lambda done, parts: report(files + files * done // parts, 2 * files),
    )
    pq.write_table(plan.sources, stage.work / "sources.parquet")
    shutil.rmtree(scratch)
    pairs = zip(plan.parts, characters, strict=True)
    counts = {
        **plan.counts,
        "train_characters": sum(length for part, length in pairs if part.split == "train"),
        "corpus_files": files,
        "corpus_digest": corpus.digest,
        **{
            name: sum(summary[name] for summary in summaries)
            for name in ("documents", "characters", "bad_documents")
        },
        "bad_documents_named": bad_documents_named,
    }
    return stage.finish(counts)


def write_part(part: Part, decisions: Path, shards: Sequence[Path], path: Path) -> int:
    """Gather one part's passages from its shards and write it, unless it is there; return its characters."""
    if not path.exists():
        columns = ["document_id", "source", "text", "text_hash"]
        gathered = [
            read_parquet(shard, columns=columns).take(pa.array(rows))
            for shard, rows in zip(shards, rows_of(part, decisions), strict=True)
        ]
        table = pa.concat_tables(gathered)
        ids = (np.int64(part.number) << 32) + np.arange(len(table), dtype=np.int64)
        casted = [table[name].cast(PASSAGES.field(name).type) for name in columns]
        table = pa.Table.from_arrays([pa.chunked_array([ids]), *casted], schema=PASSAGES)
        pq.write_table(table, f"{path}.aside", compression="zstd", compression_level=1)
        os.replace(f"{path}.aside", path)
    return pc.sum(pc.utf8_length(read_parquet(path, columns=["text"])["text"])).as_py()


def part_files(folder: str | Path, split: str) -> list[Path]:
    """The part files of one split of a finished ``passages`` folder, in order."""
    return sorted((Path(folder) / split).glob("part-*.parquet"))


def _prepare(work: Path, corpus: Corpus) -> Path:
    """The scratch folder of this corpus; work on another one (the environment may have changed) goes."""
    scratch = work / f"extracted-{corpus.digest[:16]}"
    if not scratch.exists():
        for old in [*work.glob("extracted-*"), *(work / split for split in SPLITS)]:
            shutil.rmtree(old, ignore_errors=True)
    for folder in (scratch, *(work / split for split in SPLITS)):
        folder.mkdir(exist_ok=True)
    return scratch


def _part_path(work: Path, part: Part) -> Path:
    return work / part.split / part_name(part.number, "parquet")


def _check_bad_documents(summaries: list[dict], corpus: Corpus, limit: int) -> list[str]:
    """The first unreadable documents; raises ValueError if there are too many."""
    total = sum(summary["bad_documents"] for summary in summaries)
    named = [where for summary in summaries for where in summary["bad"]]
    if too_many_bad(total, corpus, limit):
        raise UserError(
            f"{total} documents or more of {corpus.uri} cannot be read; max_bad_documents is {limit}. First: "
            f"{'; '.join(named[:3])}. Mend or remove them, name the field with text_field, or raise "
            "max_bad_documents."
        )
    return named[:BAD_DOCUMENTS_NAMED]
