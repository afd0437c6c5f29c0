"""Is the soup worth it? The demonstration's soup and its generic twin, over several seeds.

    python -m tests.benchmarks.first_light --store demo --seeds 0 1 2 --json result.json
    python -m tests.benchmarks.first_light --methods generic --seeds 0 --config '{"learning_rate": 2e-3}'

Needs a store with held-out sources (``soe demo`` leaves one). Trains in process, on the batches Ray would give;
prints the losses at equal tokens as they fall, and at the end the mean and spread over the seeds.
Losses are in nats per token on text that neither trained a model nor chose a specialist's domain weights.
"""

from __future__ import annotations

import argparse
import json
import platform
import time

import numpy as np
import torch

from flows.settings import Pretrain
from flows.training import resolve_run as run_plan
from pipeline.embeddings.embedder import find_embedder, load_embedder
from pipeline.specialists.domain_weights import estimate_domain_weights
from pipeline.specialists.held_out import generic_evaluation, held_out_sets
from pipeline.tokenizer import load_tokenizer
from soe_model.specialists.evaluation import mean_loss
from soe_model.training.trainer import SoupTrainer
from storage_schema.domains import DomainStore
from storage_schema.layout import store_folder
from storage_schema.manifest import read_manifest

METHODS = ("generic", "soup")


class Evaluation:
    """Specialist sets of a store: their domain weights and token windows, and the generic mixture's."""

    def __init__(self, store: DomainStore, folder, sequence_length: int, passages: int):
        sets = held_out_sets(folder, max_texts=200, evaluation_passages=passages, max_sets=14)
        embedder = read_manifest(folder / "embeddings", "embeddings").configuration
        weights = find_embedder(embedder["embedder"], embedder["revision"])
        model = load_embedder(weights, max_seq_length=embedder["max_seq_length"])
        rows = [estimate_domain_weights(made.texts, store.tree, model) for made in sets]
        self.weights_WK = torch.from_numpy(np.stack([*rows, store.tree.generic_weights])).float()
        tokenizer = load_tokenizer(folder / "tokenizer" / "tokenizer.json")
        texts = [*(made.evaluation for made in sets), generic_evaluation(folder, passages=4 * passages)]
        self.windows = [torch.from_numpy(tokenizer.encode_windows(some, sequence_length)) for some in texts]
        self.names = [made.name for made in sets]

    def losses(self, trainer: SoupTrainer) -> list[float]:
        """Of every specialist set under its instance, then of the generic mixture."""
        with torch.no_grad():
            instances_WP = trainer.bank.instances(trainer.router.module(self.weights_WK))
        found = []
        for instance_P, windows in zip(instances_WP, self.windows, strict=True):
            trainer.backbone.params_P.copy_(instance_P)
            found.append(mean_loss(trainer.backbone.module, windows))
        return found


def train(settings: Pretrain, store: DomainStore, evaluation: Evaluation, points: int) -> dict:
    """One run, evaluated `points` times."""
    run = run_plan.resolve(settings, store)
    soup, training = run.soup, run.training
    stream = run_plan.make_stream(settings, store, training)
    trainer = SoupTrainer(soup, training, centroids_KD=torch.from_numpy(store.tree.leaves_KD))
    curve, seconds = [], 0.0
    for batch in stream.in_process(0, training.steps):
        begun = time.monotonic()
        trainer.train_step(
            torch.from_numpy(batch.tokens_BL1.astype(np.int64)),
            torch.from_numpy(batch.mixture_B),
            torch.from_numpy(batch.domain_weights_WK),
        )
        seconds += time.monotonic() - begun
        if trainer.step % -(-training.steps // points) == 0 or trainer.step == training.steps:
            losses = evaluation.losses(trainer)
            curve.append({"step": trainer.step, "seconds": seconds, "losses": losses})
            print(
                f"{settings.method:8} seed {settings.seed} step {trainer.step:6}: specialists "
                f"{np.mean(losses[:-1]):.4f}, generic mixture {losses[-1]:.4f}, {seconds:.0f} s",
                flush=True,
            )
    tokens = training.steps * training.batch_size * training.sequence_length
    return {"method": settings.method, "seed": settings.seed, "tokens": tokens, "curve": curve}


def summarise(runs: list[dict]) -> dict:
    """Mean and spread over the seeds of the last losses and of the soup's gain; printed too."""
    summary = {}
    for method in METHODS:
        losses = np.array([run["curve"][-1]["losses"] for run in runs if run["method"] == method])
        if not len(losses):
            continue
        means = losses[:, :-1].mean(1)
        summary[method] = {"specialists": means.tolist(), "generic_mixture": losses[:, -1].tolist()}
        print(
            f"{method:8} specialists {means.mean():.4f} ± {means.std():.4f}, generic mixture "
            f"{losses[:, -1].mean():.4f} ± {losses[:, -1].std():.4f} over {len(means)} seeds"
        )
    if len(summary) == len(METHODS):
        gain = np.subtract(*(summary[method]["specialists"] for method in METHODS))
        summary["gain"] = gain.tolist()
        print(
            f"the soup is better by {gain.mean():.4f} ± {gain.std():.4f} nats per token "
            f"(per seed: {gain.round(4)})"
        )
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", default="demo")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--config", type=json.loads, default={}, help="further settings of both, as JSON")
    parser.add_argument("--passages", type=int, default=100)
    parser.add_argument("--points", type=int, default=5)
    parser.add_argument("--json", help="write the result there")
    options = parser.parse_args()
    folder = store_folder(options.store)
    store = DomainStore(folder)
    shared = dict(store=options.store, preset=options.preset, **options.config)
    training = run_plan.resolve(Pretrain(**shared), store).training
    evaluation = Evaluation(store, folder, training.sequence_length, options.passages)
    runs = [
        train(Pretrain(method=method, seed=seed, **shared), store, evaluation, options.points)
        for seed in options.seeds
        for method in options.methods
    ]
    result = {
        "sets": evaluation.names,
        "preset": options.preset,
        "config": options.config,
        "runs": runs,
        "summary": summarise(runs),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
    }
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
