"""Whether an optimizer of fewer bytes learns as exact Adam does: the same small soup, several seeds and sizes.

    python -m tests.benchmarks.loss_parity --json result.json

The domains are the 64 installed packages with the most Python source, as a byte-level BPE of 400 tokens. Every run
reads the same plan for its seed. What is compared is the loss of the instances of fixed mixtures, on fixed batches of
their data, after training. An optimizer passes at one N if its mean over the seeds lies within exact Adam's own spread
over them (one standard deviation) of Adam's mean.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pipeline.mixtures.meta_distributions import Sparse
from pipeline.mixtures.plan import MixturePlan
from pipeline.stream.batches import Batch, MixtureStream
from soe_model.model.backbone import token_losses
from soe_model.optimizers import OPTIMIZERS, compiling
from soe_model.presets import SoupConfig, preset
from soe_model.training.trainer import SoupTrainer
from storage_schema.domains import DomainStore
from tests.toy_store import write_texts

EVALUATION_SEED, EVALUATION_STEPS = 999, 24
DOMAINS, CHARACTERS = 64, 400_000


def write_packages(folder: Path) -> None:
    """A store of one domain a package."""
    site = Path(sysconfig.get_paths()["purelib"])
    sizes = {
        package: sum(path.stat().st_size for path in package.rglob("*.py"))
        for package in site.iterdir()
        if package.is_dir()
    }
    domains = []
    for package in sorted(sizes, key=lambda package: -sizes[package])[:DOMAINS]:
        texts, length = [], 0
        for path in sorted(package.rglob("*.py")):
            texts.append(path.read_text("utf-8", errors="replace")[:20_000])
            length += len(texts[-1])
            if length > CHARACTERS:
                break
        domains.append(texts)
    write_texts(folder, domains)


def batches(options: argparse.Namespace, training, *, seed: int, steps: int) -> Iterator[Batch]:
    store = DomainStore(options.store)
    plan = MixturePlan(
        store.windows_K(training.sequence_length),
        Sparse(support_size=training.support_size),
        seed=seed,
        batch_size=training.batch_size,
        mixtures_per_step=training.mixtures_per_step,
    )
    stream = MixtureStream(store_folder=options.store, sequence_length=training.sequence_length, plan=plan)
    return stream.in_process(0, steps)


def tensors(batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tokens = torch.from_numpy(batch.tokens_BL1.astype(np.int64))
    return tokens, torch.from_numpy(batch.mixture_B), torch.from_numpy(batch.domain_weights_WK)


def final_loss(options: argparse.Namespace, *, optimizer: str, num_experts: int, seed: int) -> float:
    """Nats per token of the fixed mixtures' instances, after training."""
    chosen, store = preset("tiny"), DomainStore(options.store)
    training = replace(chosen.training, steps=options.steps, warmup_steps=50, seed=seed, optimizer=optimizer)
    backbone = chosen.backbone(
        vocab_size=store.vocab_size, sequence_length=training.sequence_length, end_of_text=store.end_of_text
    )
    soup = SoupConfig(
        backbone=backbone,
        num_experts=num_experts,
        num_domains=store.num_domains,
        router_output_scale=chosen.router_output_scale,
    )
    trainer = SoupTrainer(soup, training, centroids_KD=torch.from_numpy(store.tree.leaves_KD))
    for batch in batches(options, training, seed=seed, steps=options.steps):
        trainer.train_step(*tensors(batch))
    return evaluate(trainer, options)


@torch.no_grad()
def evaluate(trainer: SoupTrainer, options: argparse.Namespace) -> float:
    losses = []
    for batch in batches(options, trainer.training, seed=EVALUATION_SEED, steps=EVALUATION_STEPS):
        tokens, mixture, weights = tensors(batch)
        for w, instance_P in enumerate(trainer.bank.instances(trainer.router.module(weights))):
            trainer.backbone.params_P.copy_(instance_P)
            losses.append(token_losses(trainer.backbone.module, tokens[mixture == w]).mean().item())
    return statistics.fmean(losses)


def verdict(rows: list[dict]) -> list[dict]:
    """Each optimizer's mean and spread at each N, beside Adam's."""
    found = []
    for n in sorted({row["num_experts"] for row in rows}):
        of = {
            name: [row["loss"] for row in rows if row["num_experts"] == n and row["optimizer"] == name]
            for name in OPTIMIZERS
        }
        spread, middle = statistics.stdev(of["adam"]), statistics.fmean(of["adam"])
        for name, losses in of.items():
            if losses:
                difference = statistics.fmean(losses) - middle
                paired = [loss - adam for loss, adam in zip(losses, of["adam"], strict=True)]
                found.append(
                    {"num_experts": n, "optimizer": name, "mean": statistics.fmean(losses), "adam_spread": spread,
                     "difference": difference, "paired_differences": paired, "passes": abs(difference) <= spread}
                )  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--experts", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    compiling.WORTH_IT = 0
    with tempfile.TemporaryDirectory(prefix="soe-parity-") as folder:
        options.store = folder
        write_packages(Path(folder))
        run(options)


def run(options: argparse.Namespace) -> None:
    """All runs, and the verdict."""
    rows = []
    for seed in options.seeds:
        for num_experts in options.experts:
            for optimizer in options.optimizers:
                loss = final_loss(options, optimizer=optimizer, num_experts=num_experts, seed=seed)
                rows.append({"seed": seed, "num_experts": num_experts, "optimizer": optimizer, "loss": loss})
                print(f"  seed {seed}, N = {num_experts}, {optimizer:18} {loss:.4f}", flush=True)
                if options.json:
                    body = {"settings": vars(options) | {"json": None, "store": None}, "rows": rows}
                    options.json.write_text(json.dumps(body, indent=1) + "\n")
    summary = verdict(rows)
    for row in summary:
        print(
            f"N = {row['num_experts']:3} {row['optimizer']:18} {row['mean']:.4f}, {row['difference']:+.4f} from adam "
            f"(spread {row['adam_spread']:.4f}): {'passes' if row['passes'] else 'does not pass'}"
        )
    if options.json:
        options.json.write_text(
            json.dumps(
                {"settings": vars(options) | {"json": None, "store": None}, "rows": rows, "summary": summary},
                indent=1,
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
