"""Finding equal passages by their hashes, however many there are.

Equal passages have equal hashes. So the hashes are dealt out to buckets on disk by their first bits, and each bucket is
decided on its own, in tasks: a task holds the hashes of some shards, or one bucket. A dealt file has one record batch
per bucket, because a file per bucket would be one per task and bucket. What is decided is one byte per passage on disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from pipeline.passages.parts import CODE_OF_SPLIT
from storage_schema.aside import written_aside

BUCKET_ROWS = 1 << 20
MOST_BUCKETS = 1024
"""Enough for a billion passages. A bucket is a record batch of each dealt file: more would be ever smaller ones."""
PRESENT = -1
"""The position of a passage that the store already has."""
BUCKET = pa.schema([("position", pa.int64()), ("text_hash", pa.uint64()), ("held_out", pa.bool_())])
"""A passage's position is its number among the passages of all shards."""


def bucket_count(rows: int) -> int:
    """The number of buckets for this many passages, a power of two."""
    return min(MOST_BUCKETS, 1 << max(0, (rows // BUCKET_ROWS).bit_length()))


def write_dealt(rows: pl.DataFrame, buckets: int, path: Path) -> None:
    """Write rows (columns of ``BUCKET``) to a dealt file, by the first bits of their hashes."""
    hashes = rows["text_hash"].to_numpy()
    shift = np.uint64(64 - (buckets - 1).bit_length())
    bucket_of = hashes >> shift if buckets > 1 else np.zeros_like(hashes)
    order = np.argsort(bucket_of, kind="stable")
    ends = np.cumsum(np.bincount(bucket_of.astype(np.int64), minlength=buckets)).tolist()
    [batch] = rows.select(BUCKET.names).to_arrow().cast(BUCKET).take(order).combine_chunks().to_batches() or [
        pa.RecordBatch.from_pylist([], BUCKET)
    ]
    with written_aside(path) as aside, pa.ipc.new_file(str(aside), BUCKET) as writer:
        for begin, end in zip([0, *ends], ends, strict=False):
            writer.write_batch(batch.slice(begin, end - begin))


def decide_bucket(folder: Path, bucket: int, drop_duplicates: bool, by_hash: bool) -> dict[str, int]:
    """Decide one bucket of the dealt files in `folder`, and save the positions of the passages that are kept.

    Args:
        by_hash: the training passages' positions come in the order of the hashes.

    Returns:
        How many passages are kept in each split, and how many are dropped, by reason.
    """
    all_rows = _read(folder, bucket)
    present, given = all_rows.filter(position=PRESENT), all_rows.filter(pl.col("position") != PRESENT)
    rows = given.join(present, on="text_hash", how="anti", maintain_order="left")
    train, held_out = rows.filter(~pl.col("held_out")), rows.filter("held_out")
    distinct, distinct_held_out = train, held_out
    if drop_duplicates:
        distinct = train.unique("text_hash", keep="first", maintain_order=True)
        distinct_held_out = held_out.unique("text_hash", keep="first", maintain_order=True)
    fresh = distinct_held_out.join(distinct, on="text_hash", how="anti")
    kept = distinct.sort("text_hash", maintain_order=True) if by_hash else distinct
    for split, chosen in (("train", kept), ("held_out", fresh)):
        with written_aside(_kept(folder, split, bucket)) as aside, open(aside, "wb") as file:
            np.save(file, chosen["position"].to_numpy())
    return {
        "passages": len(kept),
        "held_out_passages": len(fresh),
        "train_duplicates_dropped": len(train) - len(distinct),
        "train_passages_over_the_limit": 0,
        "held_out_duplicates_dropped": len(held_out) - len(distinct_held_out),
        "held_out_seen_in_training_dropped": len(distinct_held_out) - len(fresh),
        "present_dropped": len(given) - len(rows),
    }


def mark_kept(
    folder: Path, counts: Sequence[dict[str, int]], decided: np.ndarray, max_passages: int | None
) -> dict[str, int]:
    """Mark in `decided` what the decided buckets keep.

    Args:
        counts: what :func:`decide_bucket` returned for each bucket.
        decided: uint8, one decision per passage (``parts.py``).
        max_passages: at most this many training passages are kept, those with the smallest hashes.

    Returns:
        The sums of the counts.
    """
    total = {name: sum(of_bucket[name] for of_bucket in counts) for name in counts[0]}
    room = total["passages"] if max_passages is None else min(max_passages, total["passages"])
    total["train_passages_over_the_limit"], total["passages"] = total["passages"] - room, room
    for bucket in range(len(counts)):
        for split, code in CODE_OF_SPLIT.items():
            positions = np.load(_kept(folder, split, bucket), allow_pickle=False)
            if split == "train":
                positions = positions[:room]
                room -= len(positions)
            decided[positions] = code
    return total


def _read(folder: Path, bucket: int) -> pl.DataFrame:
    """A bucket's rows in the order in which they were dealt, memory-mapped."""
    batches = []
    for path in sorted(folder.glob("dealt-*.arrow")):
        with pa.memory_map(str(path)) as source:
            batches.append(pa.ipc.open_file(source).get_batch(bucket))
    found = pl.from_arrow(pa.Table.from_batches(batches, BUCKET))
    assert isinstance(found, pl.DataFrame)
    return found


def _kept(folder: Path, split: str, bucket: int) -> Path:
    return folder / f"{split}-{bucket:04d}.npy"
