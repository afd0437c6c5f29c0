"""The runs of words in texts, as hashes: what text is compared by, wherever it was cut.

A word is letters without case, digits and underscores; what stands between words does not count. A text of fewer than
``RUN_WORDS`` words has no run.

Legend: N texts, R runs.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

RUN_WORDS = 13
"""The length with which GPT-3's training data were compared with its test sets (Brown et al. 2020, appendix C)."""
_MIX = np.uint64(0xD6E8FEB86659FD93)
_FOLD = np.uint64(29)


def runs_of(texts: pa.LargeStringArray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The hashes of the runs of words in texts, in order.

    Args:
        texts: ``[N]``.
        first: bool ``[N]``; a run may continue from one text into the next, unless the next one is marked here.

    Returns:
        The hashes uint64 ``[R]``, and the number of the text that each run begins in, int64 ``[R]``.
    """
    offsets = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
    data = np.frombuffer(texts.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]]
    offsets = offsets - offsets[0]
    letters = _LETTERS[data]
    begins = letters != 0
    begins[1:] &= (letters[:-1] == 0) | ((letters[1:] >= 0xE3) & (letters[1:] <= 0xED))
    # A word's hash is the sum of one random number per pair of neighbouring letters: so "act" differs from "cat".
    pairs = letters.astype(np.uint16)
    pairs[1:] |= pairs[:-1] << np.uint16(8)
    edges = offsets[:-1][first & (np.diff(offsets) > 0)]
    begins[edges], pairs[edges] = letters[edges] != 0, letters[edges]
    starts = np.flatnonzero(begins)
    if len(starts) < RUN_WORDS:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    words = np.add.reduceat(_PAIRS[pairs], starts)
    words = (words ^ (words >> _FOLD)) * _MIX
    runs = np.zeros(len(words) - RUN_WORDS + 1, np.uint64)
    for word in range(RUN_WORDS):
        runs = runs * _MIX + words[word : word + len(runs)]
    runs = (runs ^ (runs >> _FOLD)) * _MIX
    text_of = np.repeat(np.arange(len(texts)), np.diff(np.searchsorted(starts, offsets)))
    document_of = np.cumsum(first)[text_of]
    whole = document_of[: len(runs)] == document_of[RUN_WORDS - 1 :]
    return runs[whole], text_of[: len(runs)][whole]


def _tables() -> tuple[np.ndarray, np.ndarray]:
    """The letter of each byte, uint8 (0 for a byte that separates words), and 64 random bits per pair of letters.

    Bytes beyond ASCII are letters. Chinese and Japanese characters and Hangul begin with 0xE3 to 0xED; each of them is
    a word of its own.
    """
    letters = np.arange(256, dtype=np.uint8)
    for byte in range(128):
        letters[byte] = ord(chr(byte).lower()) if chr(byte).isalnum() or chr(byte) == "_" else 0
    pairs = (
        np.frombuffer(np.random.PCG64(13).random_raw(1 << 16).tobytes(), np.uint64).reshape(256, 256).copy()
    )
    pairs[:, 0] = 0
    return letters, pairs.reshape(-1)


_LETTERS, _PAIRS = _tables()
