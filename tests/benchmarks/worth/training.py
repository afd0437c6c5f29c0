"""Soup and generic twin in process: restartable runs, measured at equal tokens.

Every run reads the product's own stream under the product's own settings, and goes on from its newest checkpoint.

Legend: K domains, P parameters of an instance, n windows, L tokens in a window.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flows.settings import Pretrain
from flows.training.resolve_run import make_stream, resolve
from pipeline.embeddings.embedder import find_embedder, load_embedder
from pipeline.specialists.domain_weights import estimate_domain_weights
from pipeline.specialists.sets import generic_evaluation, held_out_sets
from pipeline.tokenizer import load_tokenizer
from soe_model.specialists.evaluation import window_losses
from soe_model.training.checkpoint import is_whole, load_checkpoint, save_checkpoint
from soe_model.training.trainer import SoupTrainer
from storage_schema.domains import DomainStore
from storage_schema.layout import store_folder
from storage_schema.manifest import read_manifest, write_atomically
from tests.benchmarks.worth.kinds import FAR, NEAR

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of Algorithm 3's domain weights in an instance; the rest is the generic mixture's."""
WINDOWS = 32
"""Windows of a set that are measured, and as many of the given texts, which choose the share."""
TEXTS, PASSAGES, MOST_SETS = 200, 100, 40
CHECKPOINT_SECONDS = 300.0


@dataclass(frozen=True)
class Set:
    """A specialist set as it is measured."""

    name: str
    part: str
    """near, far, seen (documents kept out of a source that is trained on) or generic."""
    weights_K: torch.Tensor
    given_nL1: torch.Tensor
    evaluation_nL1: torch.Tensor


def load_sets(store: DomainStore, folder: Path, sequence_length: int) -> list[Set]:
    """The store's held-out sources and its generic mixture."""
    sets = held_out_sets(folder, max_texts=TEXTS, evaluation_passages=PASSAGES, max_sets=MOST_SETS)
    embedder = read_manifest(folder / "embeddings", "embeddings").configuration
    model = load_embedder(
        find_embedder(embedder["embedder"], embedder["revision"]), max_seq_length=embedder["max_seq_length"]
    )
    tokenizer = load_tokenizer(folder / "tokenizer" / "tokenizer.json")

    def windows(texts: list[str]) -> torch.Tensor:
        tokens = torch.from_numpy(tokenizer.encode_windows(texts, sequence_length))
        spread = torch.linspace(0, len(tokens) - 1, min(WINDOWS, len(tokens))).long()
        return tokens[spread]

    found = [
        Set(
            one.name,
            "near" if one.name in NEAR else "far" if one.name in FAR else "seen",
            torch.from_numpy(estimate_domain_weights(one.texts, store.tree, model)).float(),
            windows(one.texts),
            windows(one.evaluation),
        )
        for one in sets
    ]
    generic = generic_evaluation(folder, passages=8 * WINDOWS)
    half = len(generic) // 2
    weights_K = torch.from_numpy(store.tree.generic_weights).float()
    return [*found, Set("generic", "generic", weights_K, windows(generic[half:]), windows(generic[:half]))]


def losses(trainer: SoupTrainer, sets: list[Set]) -> dict[str, dict[str, list[float]]]:
    """Set → `given` and `evaluation` → the mean loss under each of SHARES, in nats per token."""
    generic_K = sets[-1].weights_K
    found = {}
    for one in sets:
        rows_SK = torch.stack([share * one.weights_K + (1 - share) * generic_K for share in SHARES])
        row: dict[str, list[float]] = {"given": [], "evaluation": []}
        for instance_P in trainer.instantiate(rows_SK / rows_SK.sum(1, keepdim=True)):
            trainer.backbone.params_P.copy_(instance_P)
            row["given"].append(float(window_losses(trainer.backbone.module, one.given_nL1).mean()))
            row["evaluation"].append(float(window_losses(trainer.backbone.module, one.evaluation_nL1).mean()))
        found[one.name] = row
    return found


def train(settings: Pretrain, folder: Path, points: int, until: float) -> dict[str, Any] | None:
    """The run to its end, measured at `points` equal distances; None if the time `until` came first.

    Args:
        folder: receives the run's checkpoints and ``curve.json``.
        until: time.time() after which the run stops at its next step and keeps a checkpoint.
    """
    store_at = store_folder(settings.store)
    store = DomainStore(store_at)
    run = resolve(settings, store)
    stream = make_stream(settings, store, run.training)
    trainer = SoupTrainer(run.soup, run.training, centroids_KD=torch.from_numpy(store.tree.leaves_KD))
    notes = _restore(folder, trainer, stream.plan.digest)
    sets = load_sets(store, store_at, run.training.sequence_length)
    every, saved = -(-run.training.steps // points), time.time()
    curve: list[dict[str, Any]] = notes["curve"]
    for seconds in _steps(trainer, stream):
        notes["seconds"] += seconds
        at_point = trainer.step % every == 0 or trainer.step == run.training.steps
        if at_point:
            curve.append({"step": trainer.step, "seconds": notes["seconds"], "losses": losses(trainer, sets)})
            print(line(settings, curve[-1], {one.name: one.part for one in sets}), flush=True)
        late = time.time() >= until
        if at_point or late or time.time() - saved > CHECKPOINT_SECONDS:
            save_checkpoint(
                folder / f"step-{trainer.step:07}", trainer, plan_digest=stream.plan.digest, notes=notes
            )
            _forget_all_but(folder, trainer.step)
            saved = time.time()
        if late and trainer.step < run.training.steps:
            print(f"stopped at step {trainer.step} of {run.training.steps}: run the same again.", flush=True)
            return None
    tokens = run.training.batch_size * run.training.sequence_length
    result = {
        "settings": settings.model_dump(exclude_defaults=True),
        "parts": {one.name: one.part for one in sets},
        "tokens_per_step": tokens,
        "curve": curve,
    }
    write_atomically(folder / "curve.json", json.dumps(result))
    return result


def line(settings: Pretrain, row: dict[str, Any], parts: dict[str, str]) -> str:
    """A point in words: the mean of each part's sets under Algorithm 3, the generic instance and the chosen share."""
    said = []
    for part in ("seen", "near", "far", "generic"):
        of_part = [row["losses"][name] for name, its in parts.items() if its == part]
        if not of_part:
            continue
        chosen = [one["evaluation"][int(np.argmin(one["given"]))] for one in of_part]
        means = (
            np.mean([one["evaluation"][-1] for one in of_part]),
            np.mean([one["evaluation"][0] for one in of_part]),
            np.mean(chosen),
        )
        said.append(f"{part} " + " / ".join(f"{mean:.3f}" for mean in means))
    return f"{settings.name} step {row['step']} {row['seconds']:.0f} s (h / generic / chosen): " + ", ".join(
        said
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


def _restore(folder: Path, trainer: SoupTrainer, plan_digest: str) -> dict[str, Any]:
    for place in sorted(folder.glob("step-*"), reverse=True):
        if is_whole(place):
            return load_checkpoint(place, trainer, plan_digest=plan_digest)
    return {"seconds": 0.0, "curve": []}


def _forget_all_but(folder: Path, step: int) -> None:
    for place in folder.glob("step-*"):
        if place.name != f"step-{step:07}":
            for path in place.iterdir():
                path.unlink()
            place.rmdir()
