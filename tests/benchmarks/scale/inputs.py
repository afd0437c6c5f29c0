"""Synthetic corpora and embeddings, the same for the same numbers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from pipeline.embeddings.build import write_embeddings
from pipeline.tree.nearest import node_seed
from tests.benchmarks.scale.sizes import CHARACTERS
from tests.planted import SYLLABLES

SIZE, CENTRES = 384, 3000
"""Of an embedding; and how many points the embeddings lie around, with unequal weights."""
_WORDS = 20_000
_PER_WRITE = 1_000


def write_corpus(folder: Path, passages: int, files: int, *, first: int = 0) -> int:
    """Write documents of one passage each, evenly into JSON-lines files of a hundred folders; returns their bytes.

    Args:
        first: the number of the first document; other numbers have other text.
    """
    words = np.array([_word(number) for number in range(_WORDS)])
    per_document = CHARACTERS // 6
    edges = np.linspace(0, passages, files + 1).astype(int)
    written = 0
    for number in range(files):
        place = folder / f"source-{number % 100:02d}"
        place.mkdir(parents=True, exist_ok=True)
        path = place / f"text-{first:09d}-{number:06d}.jsonl"
        with open(path, "w", encoding="utf-8") as file:
            for begin in range(edges[number], edges[number + 1], _PER_WRITE):
                end = min(begin + _PER_WRITE, edges[number + 1])
                random = np.random.Generator(np.random.Philox(first + begin))
                drawn = (
                    random.random((end - begin, per_document)) ** 3 * _WORDS
                )  # few words are frequent, as in text
                for row in words[drawn.astype(np.int64)]:
                    written += file.write(json.dumps({"text": " ".join(row)}) + "\n")
        os.utime(path, (1, 1))  # a corpus is known by its files' times, too
    return written


def _word(number: int) -> str:
    """Two or three syllables."""
    first, rest = number % len(SYLLABLES), number // len(SYLLABLES)
    return (
        SYLLABLES[first] + SYLLABLES[rest % len(SYLLABLES)] + SYLLABLES[rest // len(SYLLABLES)] * (number % 2)
    )


def embed_part(source: str, target: str) -> None:
    """Synthetic embeddings of one part, in the place of the encoder's."""
    ids = pq.read_table(source, columns=["passage_id"])["passage_id"].to_numpy()
    centres = np.random.Generator(np.random.Philox(0)).standard_normal((CENTRES, SIZE)).astype(np.float32)
    random = np.random.Generator(np.random.Philox(node_seed(1, int(ids[0] >> 32))))
    chosen = np.minimum(random.zipf(1.3, len(ids)) - 1, CENTRES - 1)
    vectors = centres[chosen] + random.standard_normal((len(ids), SIZE)).astype(np.float32)
    write_embeddings(target, ids, vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
