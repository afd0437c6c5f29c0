"""Finding equal passages by their hashes, however many there are.

Equal passages have equal hashes. So the hashes are dealt out to buckets on disk by their first bits, and each bucket is
decided on its own: memory holds one bucket at a time, and the decisions are one byte per passage on disk.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from pipeline.passages.parts import CODE_OF_SPLIT

BUCKET_ROWS = 1 << 20
MOST_BUCKETS = 128
"""All buckets are open at once, so this is also the number of open files."""
PRESENT = -1
"""The shard's number of a passage that the store already has."""
BUCKET = pa.schema(
    [("shard", pa.int32()), ("row", pa.uint32()), ("text_hash", pa.uint64()), ("held_out", pa.bool_())]
)


def bucket_count(rows: int) -> int:
    """The number of buckets for this many passages, a power of two."""
    return min(MOST_BUCKETS, 1 << max(0, (rows // BUCKET_ROWS).bit_length()))


def deal_out(rows: pl.DataFrame, writers: list[pa.ipc.RecordBatchStreamWriter]) -> None:
    """Write rows (columns of ``BUCKET``) to the buckets, by the first bits of their hashes."""
    hashes = rows["text_hash"].to_numpy()
    shift = np.uint64(64 - (len(writers) - 1).bit_length())
    bucket_of = hashes >> shift if len(writers) > 1 else np.zeros_like(hashes)
    table = rows.select(BUCKET.names).to_arrow().cast(BUCKET)
    for bucket in np.unique(bucket_of):
        writers[bucket].write_table(table.take(np.flatnonzero(bucket_of == bucket)))


def decide(
    buckets: list[Path],
    edges: np.ndarray,
    decided: np.ndarray,
    *,
    max_passages: int | None,
    drop_duplicates: bool,
) -> dict[str, int]:
    """Fill `decided`, bucket by bucket in the order of the hashes, and remove the buckets.

    Args:
        edges: where each shard's passages begin in `decided`, and where the last ones end.
        decided: uint8, one decision per passage (``parts.py``).
        max_passages: at most this many training passages are kept, those with the smallest hashes.

    Returns:
        How many passages were kept in each split, and how many were dropped, by reason.
    """
    names = ("passages", "held_out_passages", "train_duplicates_dropped", "train_passages_over_the_limit")
    names += ("held_out_duplicates_dropped", "held_out_seen_in_training_dropped", "present_dropped")
    counts = dict.fromkeys(names, 0)
    limit = np.inf if max_passages is None else max_passages
    for bucket in buckets:
        with pa.memory_map(str(bucket)) as source:
            all_rows = pl.from_arrow(pa.ipc.open_stream(source).read_all())
        present, given = all_rows.filter(shard=PRESENT), all_rows.filter(pl.col("shard") != PRESENT)
        rows = given.join(present, on="text_hash", how="anti", maintain_order="left")
        train, held_out = rows.filter(~pl.col("held_out")), rows.filter("held_out")
        distinct, distinct_held_out = train, held_out
        if drop_duplicates:
            distinct = train.unique("text_hash", keep="first", maintain_order=True)
            distinct_held_out = held_out.unique("text_hash", keep="first", maintain_order=True)
        fresh = distinct_held_out.join(distinct, on="text_hash", how="anti")
        room = limit - counts["passages"]
        kept = (
            distinct
            if len(distinct) <= room
            else distinct.sort("text_hash", maintain_order=True).head(int(room))
        )
        for split, chosen in (("train", kept), ("held_out", fresh)):
            code = CODE_OF_SPLIT[split]
            decided[edges[chosen["shard"].to_numpy()] + chosen["row"].to_numpy()] = code
        numbers = (len(kept), len(fresh), len(train) - len(distinct), len(distinct) - len(kept))
        numbers += (len(held_out) - len(distinct_held_out), len(distinct_held_out) - len(fresh))
        numbers += (len(given) - len(rows),)
        counts = {name: counts[name] + number for name, number in zip(names, numbers, strict=True)}
        bucket.unlink()
    return counts
