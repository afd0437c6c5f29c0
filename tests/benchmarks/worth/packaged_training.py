"""Soup and twin trained on a package alone, on a GPU or a CPU; needs torch, transformers, safetensors and NumPy.

    python -m tests.benchmarks.worth.packaged_training --package PACKAGE --out OUT --preset paper-35m --minutes 9 \
        --soup '{"num_experts": 32}' --training '{"steps": 2000, "batch_size": 64, "warmup_steps": 200}' --support 2 8

The same command goes on where it was cut off. OUT/curve.json has the losses so far.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.mixtures.compositions import Mixed
from pipeline.mixtures.meta_distributions import Fixed, MetaDistribution, Sparse
from pipeline.mixtures.plan import MixturePlan
from soe_model.presets import SoupConfig, TrainingConfig, preset
from soe_model.specialists.evaluation import window_losses
from soe_model.training.trainer import SoupTrainer
from storage_schema.manifest import write_atomically
from tests.benchmarks.worth.resuming import CURVE, keep, restore

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of Algorithm 3's weights; the rest is the generic mixture's. The least loss on a set's given windows chooses among
them, however sure: `blended`, which needs the set's texts, asks for more."""


@dataclass(frozen=True)
class Package:
    """What ``package.py`` wrote."""

    facts: dict[str, Any]
    windows: np.ndarray
    starts_K: np.ndarray
    """Of each domain's first window."""
    arrays: dict[str, np.ndarray]

    @classmethod
    def open(cls, folder: Path) -> Package:
        with np.load(folder / "sets.npz", allow_pickle=False) as file:
            arrays = dict(file)
        ends_K = np.cumsum(arrays["windows_K"])
        windows = np.load(folder / "windows.npy", mmap_mode="r", allow_pickle=False)
        facts = json.loads((folder / "package.json").read_text("utf-8"))
        return cls(facts, windows, ends_K - arrays["windows_K"], arrays)

    def tokens(self, domain_B: np.ndarray, row_B: np.ndarray) -> torch.Tensor:
        """The windows of these domains and rows, int64 [B, L + 1]."""
        return torch.from_numpy(self.windows[self.starts_K[domain_B] + row_B].astype(np.int64))


def configure(package: Package, options: argparse.Namespace) -> tuple[SoupConfig, TrainingConfig]:
    """The preset's settings with those that were asked for; a twin has no experts and its own rate."""
    base, facts = preset(options.preset), package.facts
    backbone = base.backbone(
        vocab_size=facts["vocab_size"],
        sequence_length=facts["sequence_length"],
        end_of_text=facts["end_of_text"],
    )
    num_experts = options.soup.get("num_experts", base.num_experts)
    soup = SoupConfig(
        backbone=backbone,
        num_experts=num_experts,
        num_domains=len(package.starts_K),
        router_hidden=base.router_hidden,
        router_input_scale=base.router_input_scale,
        router_output_scale=base.output_scale(num_experts),
        expert_std=base.expert_std,
    )
    training = replace(base.training, sequence_length=facts["sequence_length"], seed=options.seed)
    if options.method == "generic":
        rate = {"learning_rate": base.generic_learning_rate}
        return replace(soup, num_experts=0), replace(training, **(rate | options.training))
    return replace(soup, **options.soup), replace(training, **options.training)


def train(package: Package, options: argparse.Namespace) -> dict[str, Any] | None:
    """The run to its end, or to its last minute (None)."""
    until = time.time() + 60 * options.minutes
    soup, training = configure(package, options)
    sizes = options.support or [training.support_size]
    plan = MixturePlan(
        package.arrays["windows_K"],
        _law(sizes) if soup.num_experts else Fixed(package.arrays["generic_K"]),
        seed=training.seed,
        batch_size=training.batch_size,
        mixtures_per_step=training.mixtures_per_step,
        store_digest=package.facts["store"],
        sequence_length=training.sequence_length,
    )
    trainer = SoupTrainer(
        soup,
        training,
        centroids_KD=torch.from_numpy(package.arrays["centroids_KD"]),
        generic_K=torch.from_numpy(package.arrays["generic_K"]).float(),
        device=options.device,
    )
    notes = restore(options.out, trainer, plan.digest)
    result = {
        "preset": options.preset,
        "num_experts": soup.num_experts,
        "parameters": trainer.backbone.num_params,
        "training": training.described() | plan.facts,
        "package": package.facts,
        "curve": notes["curve"],
    }
    if trainer.step:
        write_atomically(
            options.out / CURVE, json.dumps(result)
        )  # one that was cut off may lack its last point
    every = -(-training.steps // options.points)
    while trainer.step < training.steps:
        begun, at = time.time(), trainer.step
        _train_to(
            min(at + 10, training.steps, at - at % every + every), trainer, plan, package, options.device
        )
        notes["seconds"] += time.time() - begun
        at_point = trainer.step % every == 0 or trainer.step == training.steps
        if at_point:
            row = {"step": trainer.step, "seconds": notes["seconds"], "losses": losses(trainer, package)}
            notes["curve"].append(row)
            print(_line(row, package.facts["parts"]), flush=True)
        late = time.time() >= until and trainer.step < training.steps
        if at_point or late:
            keep(options.out, trainer, plan.digest, notes)
            write_atomically(options.out / CURVE, json.dumps(result))
        if late:
            print(f"stopped at step {trainer.step} of {training.steps}: run the same again.", flush=True)
            return None
    return result


def losses(trainer: SoupTrainer, package: Package) -> dict[str, dict[str, Any]]:
    """Set → the mean loss on its windows at each of ``SHARES``, and the share that its given windows choose."""
    arrays, twin = package.arrays, not trainer.soup.num_experts
    generic_K = arrays["generic_K"]
    found: dict[str, dict[str, Any]] = {}
    for name in package.facts["parts"]:
        weights_K = arrays.get(f"weights {name}", generic_K)
        shares = SHARES if f"weights {name}" in arrays and not twin else SHARES[:1]
        rows = np.stack([share * weights_K + (1 - share) * generic_K for share in shares])
        instances = trainer.instantiate(torch.from_numpy(rows).float().to(trainer.device))
        measured = [
            [_mean_loss(trainer, instance, arrays[f"{which} {name}"]) for instance in instances]
            for which in ("given", "evaluation")
            if f"{which} {name}" in arrays
        ]
        best = int(np.argmin(measured[0]))
        found[name] = {"losses": measured[-1], "share": shares[best], "chosen": measured[-1][best]}
    return found


def _law(support_sizes: list[int]) -> MetaDistribution:
    """As many mixtures of each size. Domains are drawn by theirs: on the average a soup reads what its twin does."""
    laws = [Sparse(support_size=size, by_size=True) for size in support_sizes]
    return Mixed(tuple((1 / len(laws), law) for law in laws)) if len(laws) > 1 else laws[0]


def _mean_loss(trainer: SoupTrainer, instance: torch.Tensor, windows: np.ndarray) -> float:
    trainer.backbone.params_P.copy_(instance)
    windows_nL1 = torch.from_numpy(windows.astype(np.int64)).to(trainer.device)
    return round(float(window_losses(trainer.backbone.module, windows_nL1).mean()), 5)


def _train_to(stop: int, trainer: SoupTrainer, plan: MixturePlan, package: Package, device: str) -> None:
    steps = plan.steps(trainer.step, stop)
    mixture_B = torch.from_numpy(plan.mixture_of_slot()).to(device)
    for t in range(stop - trainer.step):
        weights_WK = torch.from_numpy(steps.domain_weights(trainer.step, plan.num_domains)).float()
        trainer.train_step(
            package.tokens(steps.domain_TB[t], steps.row_TB[t]).to(device), mixture_B, weights_WK.to(device)
        )


def _line(row: dict[str, Any], parts: dict[str, str]) -> str:
    said = [f"step {row['step']} {row['seconds']:.0f} s (generic / Algorithm 3 / chosen):"]
    for part in dict.fromkeys(parts.values()):
        of_part = [row["losses"][name] for name, its in parts.items() if its == part]
        means = [
            np.mean([one["losses"][0] for one in of_part]),
            np.mean([one["losses"][-1] for one in of_part]),
            np.mean([one["chosen"] for one in of_part]),
        ]
        said.append(f"{part} " + " / ".join(f"{mean:.3f}" for mean in means))
    return " ".join(said)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--package", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="holds the run: checkpoint and curve")
    parser.add_argument("--preset", default="paper-35m")
    parser.add_argument("--soup", type=json.loads, default={}, help="fields of SoupConfig, as JSON")
    parser.add_argument("--training", type=json.loads, default={}, help="fields of TrainingConfig, as JSON")
    parser.add_argument(
        "--support",
        type=int,
        nargs="+",
        help="domains in a mixture; as many mixtures of each of these numbers",
    )
    parser.add_argument("--method", choices=("soup", "generic"), default="soup")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--points", type=int, default=6, help="how often losses are measured")
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    options = parse()
    train(Package.open(options.package), options)
