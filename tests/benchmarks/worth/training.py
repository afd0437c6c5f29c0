"""Soup and generic twin in process: restartable runs, measured at equal tokens.

Every run reads the product's own stream under the product's own settings, and goes on from its newest checkpoint.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flows.settings import Pretrain
from flows.training.resolve_run import make_stream, resolve
from pipeline.cores import compute_on
from soe_model.specialists.refining import REFINED
from soe_model.training.trainer import SoupTrainer
from storage_schema.domains import DomainStore
from storage_schema.layout import store_folder
from storage_schema.manifest import write_atomically
from tests.benchmarks.worth.resuming import CURVE, keep, restore
from tests.benchmarks.worth.sets import GENERIC, METHODS, load_sets, losses

CHECKPOINT_SECONDS = 300.0
TRIED = 20
"""Steps after which the hours of the whole run are said."""


def train(settings: Pretrain, folder: Path, points: int, until: float) -> dict[str, Any] | None:
    """The run to its end, measured at `points` equal distances; None if the time `until` came first.

    Args:
        folder: receives the run's newest checkpoint and ``CURVE``, which has the points so far.
        until: time.time() after which the run stops at its next step and keeps a checkpoint.
    """
    compute_on(torch.get_num_threads())
    store = DomainStore(store_folder(settings.store))
    run = resolve(settings, store)
    stream = make_stream(settings, store, run.training)
    sets = load_sets(settings.store, run.training.sequence_length)
    trainer = SoupTrainer(
        run.soup,
        run.training,
        centroids_KD=torch.from_numpy(store.tree.leaves_KD),
        generic_K=torch.from_numpy(sets.generic_K).float(),
    )
    notes = restore(folder, trainer, stream.plan.digest)
    steps, begun_at, saved = run.training.steps, trainer.step, time.time()
    every, tokens = -(-steps // points), run.training.batch_size * run.training.sequence_length
    result = {
        "settings": settings.model_dump(exclude_defaults=True),
        "parts": sets.parts,
        "parameters": trainer.backbone.num_params,
        "steps": steps,
        "tokens_per_step": tokens,
        "curve": notes["curve"],
    }
    if trainer.step:
        write_atomically(folder / CURVE, json.dumps(result))  # one that was cut off may lack its last point
    for seconds in _steps(trainer, stream):
        notes["seconds"] += seconds
        at_point = trainer.step % every == 0 or trainer.step == steps
        if at_point:
            found = losses(trainer, sets, refined=trainer.step == steps)
            row = {"step": trainer.step, "seconds": notes["seconds"], "losses": found}
            notes["curve"].append(row)
            print(line(settings, row, sets.parts), flush=True)
        late = time.time() >= until
        if at_point or late or time.time() - saved > CHECKPOINT_SECONDS:
            keep(folder, trainer, stream.plan.digest, notes)
            write_atomically(folder / CURVE, json.dumps(result))
            saved = time.time()
        if trainer.step - begun_at == TRIED:
            print(_hours(settings, tokens, notes["seconds"] / trainer.step, steps - trainer.step), flush=True)
        if late and trainer.step < steps:
            print(f"stopped at step {trainer.step} of {steps}: run the same again.", flush=True)
            return None
    return result


def line(settings: Pretrain, row: dict[str, Any], parts: dict[str, str]) -> str:
    """A point in words: the mean of each part's sets by each method."""
    said = []
    methods = [*METHODS, REFINED] if REFINED in row["losses"][GENERIC] else METHODS
    for part in dict.fromkeys(parts.values()):
        of_part = [row["losses"][name] for name, its in parts.items() if its == part]
        means = [np.mean([np.mean(one[method]) for one in of_part]) for method in methods]
        said.append(f"{part} " + " / ".join(f"{mean:.3f}" for mean in means))
    where = f"{settings.name} step {row['step']} {row['seconds']:.0f} s"
    return f"{where} ({' / '.join(methods)}): {', '.join(said)}"


def _hours(settings: Pretrain, tokens: int, seconds: float, left: int) -> str:
    return (
        f"{settings.name}: {tokens / seconds:,.0f} tokens per second, {left:,} steps left: "
        f"about {left * seconds / 3600:.1f} hours, and the measuring."
    )


def _steps(trainer: SoupTrainer, stream: Any) -> Iterator[float]:
    """Train to the end; yields the seconds of each step."""
    for batch in stream.in_process(trainer.step, trainer.training.steps):
        begun = time.monotonic()
        trainer.train_step(
            torch.from_numpy(batch.tokens_BL1.astype(np.int64)),
            torch.from_numpy(batch.mixture_B),
            torch.from_numpy(batch.domain_weights_WK),
        )
        yield time.monotonic() - begun
