"""Windows of a store's generic mixture: pretraining data that later training mixes in again."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from pipeline.mixtures.meta_distributions import Fixed, window_shares
from pipeline.mixtures.plan import MixturePlan
from pipeline.remote.store import open_store
from pipeline.stream.batches import MixtureStream

BATCH, STEPS = 64, 1 << 40


def generic_windows(
    store_place: str, sequence_length: int, *, seed: int = 0
) -> Callable[[int], torch.Tensor]:
    """Return a function: a number n → n windows, int64 [n, L + 1]. Each call gives new windows; the same seed gives the
    same sequence of windows.

    Args:
        store_place: the store, a path or ``s3://`` URI.

    Raises:
        StoreError: there is no finished store.
        ValueError: the store has no window of that length.
    """
    store = open_store(store_place)
    windows_K = store.windows_K(sequence_length)
    plan = MixturePlan(
        windows_K,
        Fixed(window_shares(windows_K)),
        seed=seed,
        batch_size=BATCH,
        mixtures_per_step=1,
        store_digest=store.digest,
        sequence_length=sequence_length,
    )
    stream = MixtureStream(
        store_folder=store_place, sequence_length=sequence_length, plan=plan, store_parts=len(store.volumes)
    )
    batches = stream.in_process(0, STEPS)
    waiting = np.empty((0, sequence_length + 1), np.int64)

    def take(count: int) -> torch.Tensor:
        nonlocal waiting
        while len(waiting) < count:
            waiting = np.concatenate([waiting, next(batches).tokens_BL1.astype(np.int64)])
        taken, waiting = waiting[:count], waiting[count:]
        return torch.from_numpy(taken)

    return take
