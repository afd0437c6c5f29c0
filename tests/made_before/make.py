"""How the artefacts beside this file were made: by the release before its files moved into sub-rooms.

    git worktree add ../before ef119ec
    cd ../before && PYTHONPATH=. python THIS_FILE FOLDER

`recorded.json` says what that release read and computed of them; tests/test_compatibility.py does the same today.
"""

# ruff: noqa: I001  (the modules are those of that release)
import hashlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from flows.jobs.pretrain_soe import _identity
from flows.jobs.run_record import claim_run
from pipeline.meta_distributions import Sparse
from pipeline.mixtures import MixturePlan
from pipeline.streaming import MixtureStream
from soe_model.backbone import gpt2_config
from soe_model.checkpoint import save_checkpoint
from soe_model.evaluation import mean_loss
from soe_model.presets import SoupConfig, TrainingConfig
from soe_model.recipe import make_recipe
from soe_model.soup import SoupOfExperts, write_soup
from soe_model.specialization import write_specialist
from soe_model.training import SoupTrainer
from storage_schema.domains import DomainStore
from storage_schema.stage import open_stage
from tests.toy_store import VOCAB, make_store

LENGTH, STEPS = 16, 4
SETTINGS = dict(
    steps=10, batch_size=8, sequence_length=LENGTH, mixtures_per_step=2, support_size=2, warmup_steps=1,
    learning_rate=1e-2, expert_learning_rate=5e-3, router_learning_rate=2e-2, gradient_clip=0.5,
)  # fmt: skip
"""Also in tests/test_compatibility.py."""
WEIGHTS = [0.5, 0.25, 0.0, 0.25, 0.0]


def sha256(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


def train(trainer: SoupTrainer, stream: MixtureStream, start: int, stop: int) -> list[float]:
    return [
        trainer.train_step(
            torch.from_numpy(batch.tokens_BL1.astype("int64")),
            torch.from_numpy(batch.mixture_B),
            torch.from_numpy(batch.domain_weights_WK),
        ).loss
        for batch in stream.in_process(start, stop)
    ]


def main(folder: Path) -> None:
    store = DomainStore(make_store(folder / "store", [300, 400, 200, 500, 300]))
    windows_K = store.windows_K(LENGTH)
    plan = MixturePlan(windows_K, Sparse(support_size=2), seed=3, batch_size=8, mixtures_per_step=2)
    stream = MixtureStream(store_folder=str(store.folder.parent), sequence_length=LENGTH, plan=plan)
    backbone = gpt2_config(
        vocab_size=VOCAB, sequence_length=LENGTH, embedding_size=8, num_layers=1, num_heads=2
    )
    soup = SoupConfig(backbone=backbone, num_experts=3, num_domains=5, router_hidden=6)
    training = TrainingConfig(**SETTINGS)
    claim_run(folder / "run", asdict(soup) | _identity(training) | plan.facts | {"store_parts": 1})

    trainer = SoupTrainer(soup, training, centroids_KD=torch.from_numpy(store.tree.leaves_KD.copy()))
    losses = train(trainer, stream, 0, STEPS)
    save_checkpoint(folder / "run/checkpoint", trainer, plan_digest=plan.digest, notes={"tokens": 512})
    stage = open_stage(
        folder / "soup",
        kind="soup",
        configuration={"method": "soup", "soup": asdict(soup), "training": _identity(training)},
        inputs={"domains": store.digest},
    )
    tokenizer = folder / "store/tokenizer/tokenizer.json"
    write_soup(stage.work, trainer, tree=store.tree, tokenizer=tokenizer, windows_K=windows_K)
    stage.finish({"steps": STEPS})

    finished = SoupOfExperts.open(folder / "soup")
    weights_K = torch.tensor(WEIGHTS)
    coefficients_N = finished.coefficients(weights_K[None])[0]
    recipe = make_recipe(
        finished,
        coefficients_N=coefficients_N,
        domain_weights_K=weights_K,
        how={"method": "nearest-centroids"},
    )
    instance_P = finished.instances(coefficients_N[None])[0]
    manifest = write_specialist(finished, folder / "specialist", recipe, instance_P)
    windows_nL1 = torch.from_numpy(next(stream.in_process(STEPS, STEPS + 1)).tokens_BL1.astype("int64"))
    batches = list(stream.in_process(1000, 1003))
    recorded = {
        "store": store.digest,
        "plan": plan.digest,
        "batches": sha256(*(b.tokens_BL1.tobytes() + b.mixture_B.tobytes() for b in batches)),
        "losses": losses,
        "next_losses": train(trainer, stream, STEPS, STEPS + 2),
        "soup": finished.digest,
        "generic_weights": finished.generic_weights.tolist(),
        "coefficients": coefficients_N.tolist(),
        "tensors": manifest.counts["tensors"],
        "specialist_loss": mean_loss(finished.model(instance_P), windows_nL1),
    }
    (folder / "recorded.json").write_text(json.dumps(recorded, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
