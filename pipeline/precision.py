"""In which floating-point type the embedder computes: given, or the fastest on this machine, by measurement.

Half precision is twice as fast as float32 on CPUs with matrix units for it (AMX), and a hundred times slower on
others, so nothing but a measurement can tell. What was chosen stands in the manifest, and an interrupted stage
goes on with it.
"""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.word_pieces import WordPieces, embed_word_pieces
from storage_schema.manifest import write_atomically

Precision = Literal["float32", "bfloat16", "float16"]
AUTO = "auto"
PRECISION_RECORD = "precision.txt"
"""Lies in an unfinished stage."""
CLEARLY = 1.25
"""bfloat16 must be so much faster than float32 to be chosen; near that, the choice would be the noise's."""
TRIALS = ((2, 16), (16, 64))
"""Passages and word pieces of each; the second is only tried if the first does not settle it."""


def precision_of_stage(work: Path, asked: str, model, *, use_gpu: bool) -> Precision:
    """The precision of a stage in `work`: the one it was begun with, else what is `asked`, which may be auto."""
    record = work / PRECISION_RECORD
    if not record.exists():
        chosen = asked if asked != AUTO else "float16" if use_gpu else fastest_on_cpu(model)
        write_atomically(record, chosen)
    return record.read_text()


def fastest_on_cpu(model) -> Precision:
    """float32, or bfloat16 where this machine is clearly faster with it; `model` is on the CPU."""
    half = copy.deepcopy(model).bfloat16()
    for rows, length in TRIALS:
        pieces = WordPieces(np.full(rows * length, 7, np.int32), np.full(rows, length, np.int32))
        ratio = _seconds(model, pieces) / _seconds(half, pieces)
        if ratio < 1 / CLEARLY:
            return "float32"
    return "bfloat16" if ratio > CLEARLY else "float32"


def _seconds(model, pieces: WordPieces) -> float:
    """The best of three, after one to warm up."""
    taken = []
    for _ in range(4):
        begun = time.perf_counter()
        embed_word_pieces(model, pieces)
        taken.append(time.perf_counter() - begun)
    return min(taken[1:])
