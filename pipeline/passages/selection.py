"""Which passages are kept, and which part of which split each goes to. Works on hashes; text is compared in tasks.

Held out are all documents of the named sources and, of every other source, the documents whose hash falls
below `held_out_fraction`; so a document's split does not depend on what else is in the corpus. A passage is
kept once (unless duplicates are wanted); a held-out passage whose text occurs in a training document is
dropped, because it was seen, and so is, when documents are added to a store, every passage whose text that
has already. What is cut otherwise is recognised by its runs of words (``overlap.py``).

Equal passages have equal hashes, so the hashes are dealt out to buckets on disk by their first bits and each
bucket is decided on its own: memory holds one bucket, and what is decided is one byte a passage, on disk.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.passages.overlap import Passages, RunTasks, drop_seen, known_runs, rows_mostly_in
from pipeline.tasks import run_tasks
from storage_schema.arrow_files import read_parquet
from storage_schema.corpus import SOURCES, SPLITS
from storage_schema.errors import UserError

LEAST_PART_ROWS, MOST_PART_ROWS, USUAL_PARTS = 256, 16_384, 64
BUCKET_ROWS = 1 << 20
MOST_BUCKETS = 128
"""So many files are open at once."""
PRESENT = -1
"""In place of a shard's number: a passage that the store has already."""
DROPPED, *KEPT = range(1 + len(SPLITS))
_MIX = np.uint64(0x9E3779B97F4A7C15)
_BUCKET = pa.schema(
    [("shard", pa.int32()), ("row", pa.uint32()), ("text_hash", pa.uint64()), ("held_out", pa.bool_())]
)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What is kept of a corpus."""

    held_out_sources: tuple[str, ...] = ()
    held_out_fraction: float = 0.02
    max_documents_per_source: int | None = None
    max_passages: int | None = None
    """Training passages, taken by hash, so from all documents alike."""
    drop_duplicates: bool = True
    """Within a split. Across splits, and of what a store has already, they always are."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part to be written: consecutive passages of a split, in the order of shards and rows."""

    split: str
    number: int
    """Over both splits: training parts first."""
    shards: list[tuple[int, int, int]]
    """Of each shard it draws from: its number, and where its passages begin and end among all."""
    skip: int
    """Passages of this split in the first shard that belong to earlier parts."""
    rows: int


@dataclass(frozen=True, kw_only=True)
class SelectedPassages:
    """Which passages of which shards are written, part by part."""

    parts: list[Part]
    decisions: Path
    """One byte a passage, shard after shard: 0, or 1 + the number of its split."""
    sources: pa.Table
    counts: dict[str, int]
    """Passages, by what became of them."""
    documents: dict[str, int]
    """Documents, by what became of them."""


class NothingLeft(UserError):
    """No passage is left to train on; `counts` says what became of those there were."""

    def __init__(self, counts: dict[str, int]):
        super().__init__("no passage is left to train on")
        self.counts = counts


def select_passages(
    shards: Sequence[Path],
    selection: Selection,
    scratch: Path,
    *,
    present: Sequence[Path] = (),
    run: RunTasks = run_tasks,
) -> SelectedPassages:
    """Decide on every passage of the extracted `shards`; `scratch` is a folder to work in.

    Args:
        present: the parts of passages that the store has already, if these are documents to be added.
        run: carries out the tasks that read the text.

    Raises:
        ValueError: a held-out source that is not there (documents to be added may have none of it).
        NothingLeft: nothing to train on.
    """
    edges = np.cumsum([0, *(pq.read_metadata(shard).num_rows for shard in shards)])
    rows = int(edges[-1]) + sum(pq.read_metadata(part).num_rows for part in present)
    buckets = [scratch / f"bucket-{b:03d}.arrows" for b in range(_bucket_count(rows))]
    sources, over = _deal_out(shards, selection, buckets, present)
    if not present:
        _check_sources(set(sources["source"]), selection.held_out_sources)
    decisions = scratch / "decisions.u8"
    decided = np.memmap(decisions, np.uint8, "w+", shape=max(1, int(edges[-1])))
    counts = _decide(buckets, selection, edges, decided)
    counts["over_max_documents_per_source_dropped"] = over["passages"]
    if not counts["passages"]:
        raise NothingLeft(counts)
    decided.flush()
    counts |= _drop_overlap(shards, present, decided, edges, scratch, run)
    counts["passages"] -= counts["near_held_out_dropped"]
    counts["held_out_passages"] -= counts["held_out_near_training_dropped"]
    if not counts["passages"]:
        raise NothingLeft(counts)
    parts: list[Part] = []
    for split, code in zip(SPLITS, KEPT, strict=True):
        parts += _parts(split, code, decided, edges, len(present) + len(parts))
    table = _sources(shards, sources, decided, edges)
    documents = _documents_by_outcome(shards, decided, edges)
    documents["no passage kept"] = sources["documents"].sum() - sum(documents.values())
    documents["over max_documents_per_source"] = over["documents"]
    return SelectedPassages(
        parts=parts, decisions=decisions, sources=table, counts=counts, documents=documents
    )


def _drop_overlap(
    shards: Sequence[Path],
    present: Sequence[Path],
    decided: np.memmap,
    edges: np.ndarray,
    scratch: Path,
    run: RunTasks,
) -> dict[str, int]:
    """Undo the decision for passages that are, though not equal, mostly in those of the other split."""
    training, held_out = (
        [
            Passages(path=shard, decisions=Path(str(decided.filename)), begin=int(begin), code=code)
            for shard, begin in zip(shards, edges, strict=False)
        ]
        for code in KEPT
    )
    there = {
        split: [Passages(path=part) for part in present if part.parent.name == split] for split in SPLITS
    }
    counts = {"near_held_out_dropped": 0, "held_out_near_training_dropped": 0}
    known = known_runs(there["held_out"], scratch, run)
    if known is not None:
        rows = run(rows_mostly_in, [(some, known) for some in training])
        counts["near_held_out_dropped"] = _undo(rows, edges, decided)
    rows = drop_seen(held_out, training + there["train"], scratch, run)
    counts["held_out_near_training_dropped"] = _undo(rows, edges, decided)
    return counts


def _undo(rows_S: Sequence[np.ndarray], edges: np.ndarray, decided: np.memmap) -> int:
    for begin, rows in zip(edges, rows_S, strict=False):
        decided[begin + rows] = DROPPED
    decided.flush()
    return sum(map(len, rows_S))


def rows_of(part: Part, decisions: Path) -> Iterator[np.ndarray]:
    """The rows that `part` takes from each of its shards."""
    code = KEPT[SPLITS.index(part.split)]
    skip, left = part.skip, part.rows
    with open(decisions, "rb") as file:
        for _, begin, end in part.shards:
            file.seek(begin)
            rows = np.flatnonzero(np.fromfile(file, np.uint8, end - begin) == code)[skip : skip + left]
            skip, left = 0, left - len(rows)
            yield rows


def _bucket_count(rows: int) -> int:
    return min(MOST_BUCKETS, 1 << max(0, (rows // BUCKET_ROWS).bit_length()))


def _deal_out(
    shards: Sequence[Path], selection: Selection, buckets: list[Path], present: Sequence[Path]
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Write every passage's hash to its bucket; return the sources with their documents, and how many documents and
    passages are over the limit.
    """
    over = {"documents": 0, "passages": 0}
    last_order = _last_orders(shards, selection.max_documents_per_source)
    unseen = pl.col("source").is_in(list(selection.held_out_sources))
    by_hash = pl.col("document_hash") < int(selection.held_out_fraction * 2**64)
    found: list[pl.DataFrame] = []
    with ExitStack() as stack:
        writers = [stack.enter_context(pa.ipc.new_stream(str(bucket), _BUCKET)) for bucket in buckets]
        for part in present:
            hashes = pl.from_arrow(read_parquet(part, columns=["text_hash"]))
            _write(hashes.with_columns(shard=PRESENT, row=0, held_out=False), writers)
        for number, shard in enumerate(shards):
            rows = _read_hashes(shard).with_columns(shard=pl.lit(number, pl.Int32))
            if last_order is not None:
                every = rows
                rows = rows.join(last_order, on="source").filter(pl.col("order") <= pl.col("last"))
                over["documents"] += every["document_hash"].n_unique() - rows["document_hash"].n_unique()
                over["passages"] += len(every) - len(rows)
            rows = rows.with_columns(unseen=unseen, held_out=unseen | by_hash).sort("row")
            found.append(_documents(rows))
            if len(found) > 64:
                found = [_merge(found)]
            _write(rows, writers)
    return _merge(found), over


def _write(rows: pl.DataFrame, writers: list[pa.ipc.RecordBatchStreamWriter]) -> None:
    """Deal rows of ``_BUCKET`` out to the buckets, by the first bits of their hashes."""
    hashes = rows["text_hash"].to_numpy()
    shift = np.uint64(64 - (len(writers) - 1).bit_length())
    bucket_of = hashes >> shift if len(writers) > 1 else np.zeros_like(hashes)
    table = rows.select(_BUCKET.names).to_arrow().cast(_BUCKET)
    for bucket in np.unique(bucket_of):
        writers[bucket].write_table(table.take(np.flatnonzero(bucket_of == bucket)))


def _decide(buckets: list[Path], selection: Selection, edges: np.ndarray, decided: np.ndarray) -> dict:
    """Fill `decided`. Buckets come in the order of their hashes, so a limit on passages fills up in that order."""
    names = ("passages", "held_out_passages", "train_duplicates_dropped", "train_passages_over_the_limit")
    names += ("held_out_duplicates_dropped", "held_out_seen_in_training_dropped", "present_dropped")
    counts = dict.fromkeys(names, 0)
    limit = np.inf if selection.max_passages is None else selection.max_passages
    for bucket in buckets:
        with pa.memory_map(str(bucket)) as source:
            all_rows = pl.from_arrow(pa.ipc.open_stream(source).read_all())
        present, given = all_rows.filter(shard=PRESENT), all_rows.filter(pl.col("shard") != PRESENT)
        rows = given.join(present, on="text_hash", how="anti", maintain_order="left")
        train, held_out = rows.filter(~pl.col("held_out")), rows.filter("held_out")
        distinct, distinct_held_out = train, held_out
        if selection.drop_duplicates:
            distinct = train.unique("text_hash", keep="first", maintain_order=True)
            distinct_held_out = held_out.unique("text_hash", keep="first", maintain_order=True)
        fresh = distinct_held_out.join(distinct, on="text_hash", how="anti")
        room = limit - counts["passages"]
        kept = (
            distinct
            if len(distinct) <= room
            else distinct.sort("text_hash", maintain_order=True).head(int(room))
        )
        for code, chosen in zip(KEPT, (kept, fresh), strict=True):
            decided[edges[chosen["shard"].to_numpy()] + chosen["row"].to_numpy()] = code
        numbers = (len(kept), len(fresh), len(train) - len(distinct), len(distinct) - len(kept))
        numbers += (len(held_out) - len(distinct_held_out), len(distinct_held_out) - len(fresh))
        numbers += (len(given) - len(rows),)
        counts = {name: counts[name] + number for name, number in zip(names, numbers, strict=True)}
        bucket.unlink()
    return counts


def _read_hashes(shard: Path) -> pl.DataFrame:
    table = pl.from_arrow(read_parquet(shard, columns=["source", "document_hash", "text_hash"]))
    # Another hash than the one that splits: else the documents kept would be the held-out ones.
    order = table["document_hash"].to_numpy() * _MIX
    return table.with_columns(pl.col("source").cast(pl.String), order=pl.Series(order)).with_row_index("row")


def _last_orders(shards: Sequence[Path], limit: int | None) -> pl.DataFrame | None:
    """The order of the last document each source may have; None if there is no limit."""
    if limit is None:
        return None
    kept = pl.DataFrame(schema={"source": pl.String, "order": pl.UInt64})
    for shard in shards:
        kept = pl.concat([kept, _read_hashes(shard).select("source", "order")]).unique()
        kept = kept.filter(pl.col("order").rank("ordinal").over("source") <= limit)
    return kept.group_by("source").agg(last=pl.col("order").max())


def _documents(rows: pl.DataFrame) -> pl.DataFrame:
    """Sources with their documents; a document lies in one shard, so shards add up."""
    return rows.group_by("source").agg(
        documents=pl.col("document_hash").n_unique(), unseen=pl.col("unseen").first()
    )


def _merge(found: list[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat(found).group_by("source").agg(pl.col("documents").sum(), pl.col("unseen").first())


def _check_sources(known: set[str], held_out: Sequence[str]) -> None:
    for name in held_out:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=5, cutoff=0.5) or sorted(known)[:5]
            raise UserError(
                f"held_out_sources names {name!r}, which is none of the corpus's {len(known)} sources. "
                f"Near names: {', '.join(near)}."
            )


def _parts(
    split: str, code: int, decided: np.ndarray, edges: np.ndarray, first_number: int
) -> Iterator[Part]:
    """Equal parts of a split."""
    kept_S = [np.count_nonzero(decided[a:b] == code) for a, b in zip(edges, edges[1:], strict=False)]
    before_S = np.cumsum([0, *kept_S])
    total = int(before_S[-1])
    size = min(max(LEAST_PART_ROWS, -(-total // USUAL_PARTS)), MOST_PART_ROWS)
    for number, start in enumerate(range(0, total, size)):
        stop = min(start + size, total)
        first = int(np.searchsorted(before_S, start, side="right")) - 1
        last = int(np.searchsorted(before_S, stop, side="left"))
        yield Part(
            split=split,
            number=first_number + number,
            shards=[(s, int(edges[s]), int(edges[s + 1])) for s in range(first, last) if kept_S[s]],
            skip=start - int(before_S[first]),
            rows=stop - start,
        )


def _documents_by_outcome(shards: Sequence[Path], decided: np.ndarray, edges: np.ndarray) -> dict[str, int]:
    """Documents of which a passage is kept, by split; a document lies in one shard."""
    names = ("trained on", "held out")
    kept = dict.fromkeys(names, 0)
    for number, shard in enumerate(shards):
        hashes = read_parquet(shard, columns=["document_hash"])["document_hash"].to_numpy()
        for name, code in zip(names, KEPT, strict=True):
            kept[name] += len(np.unique(hashes[decided[edges[number] : edges[number + 1]] == code]))
    return kept


def _sources(
    shards: Sequence[Path], sources: pl.DataFrame, decided: np.ndarray, edges: np.ndarray
) -> pa.Table:
    """The sources with their documents, and their passages that are kept."""
    kept: list[pl.DataFrame] = []
    for number, shard in enumerate(shards):
        names = pl.from_arrow(read_parquet(shard, columns=["source"]))["source"].cast(pl.String)
        rows = pl.DataFrame({"source": names, "code": decided[edges[number] : edges[number + 1]]})
        kept.append(_passages(rows))
        if len(kept) > 64:
            kept = [pl.concat(kept).group_by("source").sum()]
    table = sources.join(pl.concat(kept).group_by("source").sum(), on="source", how="left").sort("source")
    return table.fill_null(0).select(SOURCES.names).to_arrow().cast(SOURCES)


def _passages(rows: pl.DataFrame) -> pl.DataFrame:
    counted = (pl.col("code") == code for code in KEPT)
    train, held_out = (expression.sum() for expression in counted)
    return rows.group_by("source").agg(train_passages=train, held_out_passages=held_out)
