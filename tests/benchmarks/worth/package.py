"""The corpus as one small package of numbers: all that a machine with a GPU and torch needs to train soup and twin.

    windows.npy     uint16 [n, L + 1]; windows to train on, domain after domain
    sets.npz        windows_K, generic_K, centroids_KD; of each set its weights [K], and windows [n, L + 1] that were
                    given and that it is measured on
    package.json    length, vocabulary, names and parts of the sets, digest of the store

Nothing of it is redistributed: it is carried to a machine of one's own and forgotten.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.stream.window_reader import window_reader
from storage_schema.domains import DomainStore
from storage_schema.errors import UserError
from storage_schema.layout import store_folder
from storage_schema.manifest import write_atomically
from tests.benchmarks.worth.sets import GENERIC, load_sets

MOST_BYTES = 60 << 20
"""Of the whole package."""
GIVEN_WINDOWS = 16
"""Of each set's own texts, by which a run chooses how far to follow them."""


def write_package(
    store: str, folder: Path, sequence_length: int, most_bytes: int = MOST_BYTES
) -> dict[str, Any]:
    """Write the package of a store into `folder`, which it makes.

    Every domain keeps the same share of its windows, evenly spaced, and one at least.

    Raises:
        ValueError: the vocabulary is larger than uint16 holds, or the sets alone take more than `most_bytes`.
    """
    opened, sets = DomainStore(store_folder(store)), load_sets(store, sequence_length)
    if opened.vocab_size > 1 << 16:
        raise UserError(f"the store {store} has {opened.vocab_size} tokens; a package holds 65,536 at most.")
    arrays = {
        "generic_K": sets.generic_K.astype(np.float64),
        "centroids_KD": sets.tree.leaves_KD.astype(np.float32),
        f"evaluation {GENERIC}": _small(sets.evaluation[GENERIC].numpy()),
    }
    for one, assignment in zip(sets.sets, sets.assignments, strict=True):
        given = sets.tokenizer.encode_windows(one.texts, sequence_length)
        arrays[f"weights {one.name}"] = assignment.domain_weights.astype(np.float64)
        arrays[f"given {one.name}"] = _small(_spaced(given, GIVEN_WINDOWS))
        arrays[f"evaluation {one.name}"] = _small(sets.evaluation[one.name].numpy())
    left = most_bytes - sum(array.nbytes for array in arrays.values()) - (1 << 20)
    share = left / (2 * (sequence_length + 1) * opened.windows_K(sequence_length).sum())
    if share <= 0:
        raise UserError(f"the sets of {store} alone take {(most_bytes - left) / 2**20:.0f} MiB. Allow more.")
    kept_K, windows = _windows(opened, sequence_length, min(share, 1.0))
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "windows.npy", windows)
    np.savez(folder / "sets.npz", windows_K=kept_K, **arrays)
    facts = {
        "store": opened.digest,
        "sequence_length": sequence_length,
        "vocab_size": opened.vocab_size,
        "end_of_text": opened.end_of_text,
        "tokens": int(len(windows) * sequence_length),
        "share": min(share, 1.0),
        "parts": sets.parts,
    }
    write_atomically(folder / "package.json", json.dumps(facts, indent=1))
    return facts


def _windows(store: DomainStore, length: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    reader, windows_K = window_reader(store, length), store.windows_K(length)
    kept_K = np.where(windows_K > 0, np.maximum(1, (windows_K * share).astype(np.int64)), 0)
    rows = [np.linspace(0, n - 1, kept).astype(np.int64) for n, kept in zip(windows_K, kept_K, strict=True)]
    read = reader.read(np.repeat(np.arange(len(kept_K)), kept_K), np.concatenate(rows))
    reader.finish()
    return kept_K, _small(read)


def _spaced(rows: np.ndarray, most: int) -> np.ndarray:
    return rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64)]


def _small(tokens: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(tokens, dtype=np.uint16)
