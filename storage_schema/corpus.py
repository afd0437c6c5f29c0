"""Passages (Parquet) and their embeddings (Arrow).

    <store>/passages/{train,held_out}/part-00000.parquet
    <store>/embeddings/part-00000.arrow          one file for each training part, same rows, same order
"""

from __future__ import annotations

import pyarrow as pa

SPLITS = ("train", "held_out")

PASSAGES = pa.schema(
    [
        pa.field("passage_id", pa.int64(), nullable=False),  # unique in the store: part number << 32 | row
        pa.field("document_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("text", pa.large_string(), nullable=False),
    ]
)


def embeddings_schema(size: int) -> pa.Schema:
    """Arrow schema of the embeddings: ``passage_id`` and a unit-norm vector of `size` float16."""
    return pa.schema(
        [
            pa.field("passage_id", pa.int64(), nullable=False),
            pa.field("embedding", pa.list_(pa.float16(), size), nullable=False),
        ]
    )


def part_name(number: int, suffix: str) -> str:
    """``part-00042.parquet`` and the like."""
    return f"part-{number:05d}.{suffix}"
