"""Tokenizing for the encoder apart from its forward pass, so that CPU workers do it while the encoder computes.

This is for models whose text goes through one fast tokenizer and nothing else, which is almost every model. Any other
model tokenizes by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BATCH_WORD_PIECES = {"cpu": 2048, "cuda": 131_072}
"""Word pieces per batch, padding included. A batch should stay in a CPU's cache; a GPU needs large ones."""


@dataclass(frozen=True)
class WordPieces:
    """The word pieces of N texts, one after the other."""

    ids: np.ndarray
    """int32"""
    lengths_N: np.ndarray
    """int32; 0 for a blank text, if the tokenizer adds no special tokens."""

    def batches(self, device_type: str, padding: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield the rows, their padded ids ``[rows, L]`` and mask ``[rows, L]``.

        Texts are taken in the order of their lengths, the longest first, so that there is little padding.
        """
        order = np.argsort(-self.lengths_N, kind="stable")
        starts = np.cumsum(self.lengths_N) - self.lengths_N
        first = 0
        while first < len(order):
            longest = max(
                1, int(self.lengths_N[order[first]])
            )  # a text without word pieces is a row of padding
            rows = order[first : first + max(1, BATCH_WORD_PIECES[device_type] // longest)]
            mask = np.arange(longest) < self.lengths_N[rows, None]
            ids = np.full(mask.shape, padding, self.ids.dtype)
            ids[mask] = self.ids[(starts[rows, None] + np.arange(longest))[mask]]
            yield rows, ids, mask
            first += len(rows)


def tokenizer_of(model: Any) -> str | None:
    """The model's tokenizer as JSON; None if the model needs more than one fast tokenizer."""
    from sentence_transformers.models import Transformer

    tokenizer: Any = getattr(model, "tokenizer", None)
    plain = type(model[0]) is Transformer and not model.default_prompt_name
    if not plain or not getattr(tokenizer, "is_fast", False) or getattr(model[0], "do_lower_case", False):
        return None
    return tokenizer.backend_tokenizer.to_str()


def tokenize(tokenizer_json: str, texts: Sequence[str], max_seq_length: int) -> WordPieces:
    """The first `max_seq_length` word pieces of each text, including the model's special tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_seq_length)
    ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts))]
    lengths = np.fromiter((len(some) for some in ids), np.int32, len(ids))
    flat = np.concatenate([np.empty(0, np.int32), *(np.asarray(some, np.int32) for some in ids)])
    return WordPieces(flat, lengths)


def embed_word_pieces(model: Any, pieces: WordPieces) -> np.ndarray:
    """The model's vectors, float32 ``[N, D]``, equal to those of ``model.encode``."""
    import torch

    names = model.tokenizer.model_input_names
    device = model.device
    vectors: Any = None
    with torch.inference_mode():
        for rows, ids, mask in pieces.batches(device.type, model.tokenizer.pad_token_id or 0):
            features = {
                "input_ids": torch.from_numpy(ids).long().to(device),
                "attention_mask": torch.from_numpy(mask).long().to(device),
            }
            if "token_type_ids" in names:
                features["token_type_ids"] = torch.zeros_like(features["input_ids"])
            found = model(features)["sentence_embedding"].float().cpu().numpy()
            if vectors is None:
                vectors = np.empty((len(pieces.lengths_N), found.shape[1]), np.float32)
            vectors[rows] = found
    return vectors
