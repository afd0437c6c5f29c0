"""The pretraining job: a Ray Train group of workers, fed by the mixture stream.

    python -m flows.jobs.pretrain_soe --config '{"store": "environment", "preset": "tiny"}'

The run's folder (SOE_HOME/runs/<name>) holds its settings, checkpoints, log.jsonl and summary.json; the
finished soup goes to SOE_HOME/soups/<name>. The same command resumes a run that was cut off.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from typing import Any

from flows.jobs import runner
from flows.jobs.run_record import claim_run, claimed
from flows.settings import Pretrain
from pipeline.mixtures import MixturePlan, generic_weights
from pipeline.streaming import MixtureStream
from soe_model.presets import Preset, SoupConfig, TrainingConfig, preset
from storage_schema.domains import DomainStore
from storage_schema.layout import run_folder, soup_folder, store_folder
from storage_schema.lock import only_writer
from storage_schema.manifest import open_stage, read_manifest


def run(settings: Pretrain) -> dict[str, Any]:
    """Pretrain (or resume) one soup and write it; returns its digest, tokens and seconds.

    Raises:
        ValueError: for settings, stores or checkpoints that do not fit, and workers the cluster lacks.
    """
    runner.require_workers(settings.num_workers, settings.use_gpu)
    folder = run_folder(settings.name)
    # What was added to the store after a run began is not for that run: it goes on as it began.
    store = DomainStore(store_folder(settings.store), num_parts=claimed(folder).get("store_parts"))
    soup, training = resolve(settings, store)
    stream = make_stream(settings, store, training)
    stage = open_stage(
        soup_folder(settings.name),
        kind="soup",
        configuration={
            "method": settings.method,
            "soup": asdict(soup),
            "training": asdict(training),
            "embedder": read_manifest(
                store_folder(settings.store) / "embeddings", "embeddings"
            ).configuration,
        },
        inputs={"domains": store.digest},
        rebuild=None,
    )
    if stage.finished is None:
        with only_writer(folder):
            of_store = {"plan": stream.plan.digest, "store_parts": stream.store_parts}
            claim_run(folder, asdict(soup) | asdict(training) | of_store)
            _fit(settings, stream, {"soup": soup, "training": training, "soup_folder": str(stage.work)})
            stage.finish({"steps": training.steps})
    else:
        print(f"{stage.folder} is finished; nothing to train.", flush=True)
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    return {**summary, "soup": str(stage.folder), "digest": stage.finished.digest}


def _fit(settings: Pretrain, stream: MixtureStream, loop: dict[str, Any]) -> None:
    """Run the workers to the end; Ray restarts a failed group from the newest checkpoint."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from flows.jobs.training_loop import MixtureDataConfig, train_loop

    # A worker's first import of torch takes more than Ray Train's 60 s on a small, busy machine; and each of
    # a worker's lines should be in the log once.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "300")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    folder = run_folder(settings.name)
    TorchTrainer(
        train_loop,
        train_loop_config={**loop, "run_folder": str(folder), "checkpoint_every": settings.checkpoint_every},
        datasets={"train": lambda: stream},
        dataset_config=MixtureDataConfig(),
        scaling_config=ScalingConfig(num_workers=settings.num_workers, use_gpu=settings.use_gpu),
        run_config=RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            checkpoint_config=CheckpointConfig(num_to_keep=settings.checkpoints_kept),
            failure_config=FailureConfig(max_failures=3, controller_failure_limit=3),
        ),
    ).fit()


def resolve(settings: Pretrain, store: DomainStore) -> tuple[SoupConfig, TrainingConfig]:
    """The preset with the user's settings laid over it, for the vocabulary of `store`."""
    chosen: Preset = preset(settings.preset)
    overrides = {
        name: getattr(settings, name)
        for name in (
            "steps", "batch_size", "sequence_length", "mixtures_per_step", "support_size", "learning_rate",
            "expert_learning_rate", "router_learning_rate",
        )
        if getattr(settings, name) is not None
    }  # fmt: skip
    num_experts = settings.num_experts or chosen.num_experts
    if settings.method == "generic":
        num_experts = 0
        overrides["mixtures_per_step"] = 1
        overrides.setdefault("learning_rate", chosen.generic_learning_rate)
    training = replace(chosen.training, seed=settings.seed, **overrides)
    backbone = chosen.backbone(
        vocab_size=store.vocab_size,
        sequence_length=training.sequence_length,
        end_of_text=store.end_of_text,
    )
    soup = SoupConfig(
        backbone=backbone,
        num_experts=num_experts,
        num_domains=store.num_domains,
        router_hidden=chosen.router_hidden,
        router_output_scale=chosen.router_output_scale,
        expert_std=chosen.expert_std,
    )
    return soup, training


def make_stream(settings: Pretrain, store: DomainStore, training: TrainingConfig) -> MixtureStream:
    """The run's plan over the store's domains, as a stream."""
    windows_K = store.windows_K(training.sequence_length)
    plan = MixturePlan(
        windows_K,
        seed=settings.seed,
        batch_size=training.batch_size,
        mixtures_per_step=training.mixtures_per_step,
        support_size=training.support_size,
        fixed_weights_K=generic_weights(windows_K) if settings.method == "generic" else None,
        store_digest=store.digest,
        sequence_length=training.sequence_length,
    )
    stream = MixtureStream(
        store_folder=str(store_folder(settings.store)),
        sequence_length=training.sequence_length,
        plan=plan,
        store_parts=len(store.parts),
    )
    return stream.for_rank(0, settings.num_workers)


if __name__ == "__main__":
    runner.main(Pretrain, run)
