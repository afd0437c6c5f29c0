"""Sampling a corpus and timing the encoder, for about a second each; an estimate of the build is made from both."""

from __future__ import annotations

import copy
import time
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate, islice
from typing import Any

import pyarrow as pa

from pipeline.corpus.documents import Corpus, CorpusFile, Document, Piece
from pipeline.corpus.large_files import row_groups, undivided_files
from pipeline.corpus.readers import read_documents
from pipeline.embeddings.build import embed_texts
from pipeline.embeddings.runtimes import MEASURED, as_runtime, choose_runtime, with_runtime
from pipeline.embeddings.word_pieces import embed_word_pieces, tokenize, tokenizer_of
from pipeline.passages.build import GROUP_BYTES
from pipeline.passages.cutting import cut_passages
from pipeline.planning.estimate import CorpusSample

FILES, FILE_BYTES, DOCUMENTS = 48, 1 << 19, 512
"""At most this many files are read, and of a larger file only its first bytes, or its first documents."""
LOOK_SECONDS, TRY_SECONDS = 0.7, 0.7
PACKED = 3.0
"""Assumed characters per byte of compressed text, for a file that is too large to read to its end. Of one that is not
compressed (a saved dataset's) each byte is assumed to be a character."""
TEXTS, TRY_TEXTS = 64, 8
"""Passages kept of a sample, and passages that the encoder is given at once."""


def sample_corpus(corpus: Corpus, passage_characters: int) -> CorpusSample:
    """Read some files, spread evenly over the corpus's bytes, and average what they hold per byte."""
    begun = time.monotonic()
    found: list[tuple[float, float]] = []
    texts: list[list[str]] = []
    for file in _spread(corpus.files):
        if file.format == "text" and file.compression is None and file.bytes > FILE_BYTES:
            found.append((1.0, 1 / passage_characters))
            continue
        documents, share = _begin_of(corpus, file)
        cut = [cut_passages(text, passage_characters) for text in documents]
        characters, passages = sum(map(len, documents)), sum(map(len, cut))
        assumed = PACKED if file.compression else 1.0
        per_byte = share * characters / file.bytes if share else assumed * (characters > 0)
        found.append((per_byte, per_byte * passages / max(1, characters)))
        texts.append([passage for some in cut for passage in some][:TEXTS])
        if time.monotonic() - begun > LOOK_SECONDS:
            break
    in_turn = [some[number] for number in range(TEXTS) for some in texts if number < len(some)]
    characters_per_byte, passages_per_byte = (sum(column) / len(found) for column in zip(*found, strict=True))
    return CorpusSample(
        files=len(corpus.files),
        bytes=sum(file.bytes for file in corpus.files),
        characters_per_byte=characters_per_byte,
        passages_per_byte=passages_per_byte,
        texts=tuple(in_turn[:TEXTS]),
        undivided=tuple(undivided_files(corpus, GROUP_BYTES)),
    )


def encoder_rate(
    model: Any, sample: CorpusSample, *, runtime: str, max_seq_length: int, max_passages: int | None
) -> float | None:
    """How many passages per second the model embeds on the CPU with all cores; None if the sample has no texts.

    Compiling for OpenVINO and measuring all runtimes would take seconds, so torch is timed in their place. It is not
    faster than they are.

    Args:
        runtime: a runtime, ``auto`` or ``measured`` (:func:`pipeline.embeddings.runtimes.choose_runtime`).
    """
    if not sample.texts:
        return None
    texts, passages = sample.texts, max_passages or sample.passages
    asked = "torch-float32" if runtime == MEASURED else runtime
    chosen = as_runtime(choose_runtime(asked, model, passages=passages, use_gpu=False))
    if chosen not in ("torch-float32", "openvino"):
        model = with_runtime(copy.deepcopy(model), chosen)
    tokenizer = tokenizer_of(model)

    def embed(some: tuple[str, ...]) -> None:
        if tokenizer is None:
            embed_texts(model, some)
        else:
            embed_word_pieces(model, tokenize(tokenizer, some, max_seq_length))

    embed(texts[:1])  # the first call does work that later ones do not
    done, begun = 0, time.monotonic()
    for first in range(0, len(texts), TRY_TEXTS):
        some = texts[first : first + TRY_TEXTS]
        embed(some)
        done += len(some)
        if time.monotonic() - begun > TRY_SECONDS:
            break
    return done / max(1e-9, time.monotonic() - begun)


def _spread(files: tuple[CorpusFile, ...]) -> Iterator[CorpusFile]:
    """Files at even steps through the corpus's bytes, in an order that covers all of it even if one stops early."""
    ends = list(accumulate(file.bytes for file in files))
    number = min(FILES, len(files))
    step = next(step for step in (17, 19, 23, 1) if number % step)  # coprime to the number
    for turn in range(number):
        middle = (turn * step % number + 0.5) * ends[-1] / number
        yield files[min(bisect_right(ends, middle), len(files) - 1)]


def _begin_of(corpus: Corpus, file: CorpusFile) -> tuple[list[str], float | None]:
    """Texts from the beginning of a file, and how many times as much the whole file holds (None if not known)."""
    if file.bytes <= FILE_BYTES or file.format in ("code", "manual"):
        return _texts(corpus, file, None), 1.0
    if file.format == "lines" and file.compression is None:  # the last line is cut off and gives no document
        begin = replace(file, piece=Piece(0, FILE_BYTES, 0))
        return _texts(corpus, begin, None), file.bytes / FILE_BYTES
    texts = _texts(corpus, file, DOCUMENTS)
    if file.format != "parquet":
        return texts, None
    return texts, sum(rows for _, rows in row_groups(corpus.uri, file.path)) / max(1, len(texts))


def _texts(corpus: Corpus, file: CorpusFile, limit: int | None) -> list[str]:
    try:
        documents = islice(read_documents(corpus, file), limit)
        return [document.text for document in documents if isinstance(document, Document)]
    except (OSError, ValueError, pa.ArrowException):
        return []  # an estimate must not fail; the build itself will report the error
