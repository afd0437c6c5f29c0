"""How far two trainings drift apart that differ in nothing but how sums are rounded, and what one lost batch changes.

    python -m tests.benchmarks.rounding

It says which difference between the losses of one and of two workers is rounding, and which is an error: the bound
of tests/flows/jobs/test_pretrain_faults.py comes from here.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import torch

from flows.settings import Pretrain
from flows.training import resolve_run as run_plan
from soe_model.training.trainer import SoupTrainer
from storage_schema.domains import DomainStore
from tests.toy_store import make_store

STEPS, LOST = 300, 100
SETTINGS = dict(
    store="toy", preset="tiny", steps=STEPS, batch_size=8, sequence_length=16, mixtures_per_step=4, support_size=2,
    num_experts=3,
)  # fmt: skip
ULP = 6e-8
"""Relative; half of float32's last bit."""


def losses(
    home: Path, rate: float | None, *, seed: int, threads: int = 1, noise: float = 0.0, lost: int = -1
):
    """The loss of each step, float64 [STEPS]; NaN of the step whose batch is lost."""
    torch.set_num_threads(threads)
    rates = dict.fromkeys(("learning_rate", "expert_learning_rate", "router_learning_rate"), rate)
    settings, store = Pretrain(name="x", seed=seed, **rates, **SETTINGS), DomainStore(home / "stores/toy")
    run = run_plan.resolve(settings, store)
    soup, training = run.soup, run.training
    trainer = SoupTrainer(soup, training, centroids_KD=torch.from_numpy(store.tree.leaves_KD))
    generator = torch.Generator().manual_seed(1)
    shared_p = trainer.bank.shared_p
    shared_p.mul_(1 + noise * torch.randn(shared_p.shape, generator=generator))
    found = np.full(STEPS, np.nan)
    for batch in run_plan.make_stream(settings, store, training).in_process(0, STEPS):
        if batch.step != lost:
            found[batch.step] = trainer.train_step(
                torch.from_numpy(batch.tokens_BL1.astype(np.int64)),
                torch.from_numpy(batch.mixture_B),
                torch.from_numpy(batch.domain_weights_WK),
            ).loss
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SOE_HOME"] = folder
        home = Path(folder)
        make_store(home / "stores" / "toy", [400, 0, 300, 900])
        print("rate    seed  what           largest difference to step 60, 160, 300   median after it")
        for rate in (None, 1e-3, 3e-4):
            for seed in range(3):
                plain = losses(home, rate, seed=seed)
                for what, other in (
                    ("two threads", {"threads": 2}),
                    ("one ulp", {"noise": ULP}),
                    ("one batch lost", {"lost": LOST}),
                ):
                    difference = np.abs(losses(home, rate, seed=seed, **other) - plain)
                    largest = "  ".join(f"{np.nanmax(difference[:step]):.1e}" for step in (60, 160, STEPS))
                    median = np.nanmedian(difference[LOST + 1 :])
                    print(f"{rate or 'preset':<7} {seed}     {what:<14} {largest}   {median:.1e}", flush=True)


if __name__ == "__main__":
    main()
