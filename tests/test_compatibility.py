"""A store, a run, a soup and a specialist of an earlier release open, verify, and give what they gave then.

`made_before/` holds them; its make.py, which that release ran, says how they came to be. Whole numbers and exact sums
are compared to the bit. Losses and coefficients come from matrix products, whose last bits differ between CPUs.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from flows.jobs.pretrain_soe import _identity
from flows.training.run_record import claim_run
from pipeline.mixtures.meta_distributions import Sparse
from pipeline.mixtures.plan import MixturePlan
from pipeline.stream.batches import MixtureStream
from soe_model.files.soup import SoupOfExperts
from soe_model.model.backbone import gpt2_config
from soe_model.presets import SoupConfig, TrainingConfig
from soe_model.specialists.evaluation import mean_loss
from soe_model.specialists.gain import gain_line
from soe_model.specialists.recipe import read_recipe
from soe_model.specialists.specialist_files import materialize
from soe_model.specialists.verification import verify_specialist
from soe_model.training.checkpoint import load_checkpoint
from soe_model.training.trainer import SoupTrainer
from storage_schema.domains import DomainStore
from storage_schema.manifest import StoreError, verify_files
from storage_schema.stage import open_stage
from storage_schema.verified import verify_once

MADE = Path(__file__).parent / "made_before"
RECORDED = json.loads((MADE / "recorded.json").read_text("utf-8"))
LENGTH, STEPS = 16, 4
SETTINGS = dict(
    steps=10, batch_size=8, sequence_length=LENGTH, mixtures_per_step=2, support_size=2, warmup_steps=1,
    learning_rate=1e-2, expert_learning_rate=5e-3, router_learning_rate=2e-2, gradient_clip=0.5,
)  # fmt: skip
"""As made_before/make.py has them."""


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """A copy of the artefacts, opened."""
    folder = tmp_path_factory.mktemp("before")
    shutil.copytree(MADE, folder, dirs_exist_ok=True)
    store = DomainStore(folder / "store")
    windows_K = store.windows_K(LENGTH)
    plan = MixturePlan(windows_K, Sparse(support_size=2), seed=3, batch_size=8, mixtures_per_step=2)
    backbone = gpt2_config(
        vocab_size=store.vocab_size, sequence_length=LENGTH, embedding_size=8, num_layers=1, num_heads=2
    )
    return SimpleNamespace(
        folder=folder,
        store=store,
        plan=plan,
        stream=MixtureStream(store_folder=str(folder / "store"), sequence_length=LENGTH, plan=plan),
        config=SoupConfig(backbone=backbone, num_experts=3, num_domains=5, router_hidden=6),
        soup=SoupOfExperts.open(folder / "soup", verify=True),
    )


def new_trainer(before) -> SoupTrainer:
    centroids_KD = torch.from_numpy(before.store.tree.leaves_KD.copy())
    return SoupTrainer(before.config, TrainingConfig(**SETTINGS), centroids_KD=centroids_KD)


def losses(trainer: SoupTrainer, stream: MixtureStream, start: int, stop: int) -> list[float]:
    return [
        trainer.train_step(
            torch.from_numpy(batch.tokens_BL1.astype("int64")),
            torch.from_numpy(batch.mixture_B),
            torch.from_numpy(batch.domain_weights_WK),
        ).loss
        for batch in stream.in_process(start, stop)
    ]


def test_the_store_is_the_same(before):
    assert before.store.digest == RECORDED["store"]
    for part in before.store.volumes:
        verify_once(part.folder, part.manifest)


def test_the_plan_draws_the_same_batches(before):
    assert before.plan.digest == RECORDED["plan"]
    batches = before.stream.in_process(1000, 1003)
    found = b"".join(batch.tokens_BL1.tobytes() + batch.mixture_B.tobytes() for batch in batches)
    assert hashlib.sha256(found).hexdigest() == RECORDED["batches"]


def test_a_run_that_was_begun_goes_on(before):
    """Its record is that of today's settings, and the checkpoint's next steps have the losses of that release."""
    settings = (
        asdict(before.config) | _identity(TrainingConfig(**SETTINGS)) | before.plan.facts | {"store_parts": 1}
    )
    claim_run(before.folder / "run", settings)
    with pytest.raises(StoreError, match="learning_rate was 0.01, now 0.02"):
        claim_run(before.folder / "run", settings | {"learning_rate": 0.02})
    trainer = new_trainer(before)
    notes = load_checkpoint(before.folder / "run/checkpoint", trainer, plan_digest=before.plan.digest)
    assert notes == {"tokens": 512} and trainer.step == STEPS
    found = losses(trainer, before.stream, STEPS, STEPS + 2)
    assert found == pytest.approx(RECORDED["next_losses"], abs=1e-5)


def test_a_training_of_today_is_the_one_of_then(before):
    trainer = new_trainer(before)
    found = losses(trainer, before.stream, 0, STEPS)
    assert found == pytest.approx(RECORDED["losses"], abs=1e-5)


def test_the_soup_is_the_same(before):
    assert before.soup.digest == RECORDED["soup"]
    assert before.soup.generic_weights.tolist() == pytest.approx(RECORDED["generic_weights"], abs=1e-12)
    weights_K = torch.tensor([0.5, 0.25, 0.0, 0.25, 0.0])
    assert before.soup.coefficients(weights_K[None])[0].tolist() == pytest.approx(
        RECORDED["coefficients"], abs=1e-5
    )


def test_the_soup_of_the_same_settings_is_found_finished(before):
    """A flow that is asked again skips: the stage's configuration and inputs are those of then."""
    configuration = {
        "method": "soup",
        "soup": asdict(before.config),
        "training": _identity(TrainingConfig(**SETTINGS)),
    }
    inputs = {"domains": before.store.digest}
    stage = open_stage(before.folder / "soup", kind="soup", configuration=configuration, inputs=inputs)
    assert stage.finished is not None and stage.finished.digest == RECORDED["soup"]


def test_the_specialist_is_the_same_to_the_last_bit(before):
    assert verify_specialist(before.folder / "specialist", before.soup).problems == ()
    recipe = read_recipe(before.folder / "specialist/specialist.json")
    assert recipe.tensors == RECORDED["tensors"]
    again = before.folder / "again"
    manifest = materialize(recipe, before.soup, again)
    assert manifest.counts["tensors"] == RECORDED["tensors"]
    file = "model.safetensors"
    assert (again / file).read_bytes() == (MADE / "specialist" / file).read_bytes()
    verify_files(again, manifest)


@pytest.mark.parametrize(("method", "gain"), [("blended", "+0.0811"), ("refined", "+0.1081")])
def test_recipes_of_chosen_shares_and_steps_rebuild_every_bit(before, method, gain):
    """They came later, with made-up measurements; of a refined one no domain weights give the coefficients."""
    recipe = read_recipe(MADE / f"{method}.specialist.json")
    manifest = materialize(recipe, before.soup, before.folder / method)
    assert manifest.counts["tensors"] == recipe.tensors
    assert gain_line(recipe.how, {}).startswith(f"Gain: {gain} nats per token over the generic instance")
    assert verify_specialist(before.folder / method, before.soup).problems == ()


def test_the_specialist_has_the_loss_it_had(before):
    [instance_P] = before.soup.instances(
        read_recipe(before.folder / "specialist/specialist.json").coefficients_N[None]
    )
    batch = next(before.stream.in_process(STEPS, STEPS + 1))
    loss = mean_loss(before.soup.model(instance_P), torch.from_numpy(batch.tokens_BL1.astype("int64")))
    assert loss == pytest.approx(RECORDED["specialist_loss"], abs=1e-5)


def test_what_was_made_before_is_small_and_no_tool_may_rewrite_it():
    files = [path for path in MADE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 300_000
    attributes = (MADE.parents[1] / ".gitattributes").read_text("utf-8")
    assert "tests/made_before/** -text" in attributes
