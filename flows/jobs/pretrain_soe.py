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

import numpy as np

from flows.jobs import runner
from flows.jobs.run_record import claim_run, claimed
from flows.settings import Pretrain
from pipeline.meta_distributions import Dirichlet, Fixed, MetaDistribution, Sparse, generic_weights
from pipeline.mixtures import MixturePlan
from pipeline.ratios import read_ratios
from pipeline.remote_store import open_store
from pipeline.streaming import MixtureStream
from soe_model.presets import Preset, SoupConfig, TrainingConfig, preset
from storage_schema.domains import DomainStore
from storage_schema.layout import run_folder, soup_folder, store_place
from storage_schema.lock import only_writer
from storage_schema.manifest import StoreError, open_stage, read_manifest, write_atomically

SETTINGS = "settings.json"
"""In a run's folder: what it was asked for."""


def run(settings: Pretrain) -> dict[str, Any]:
    """Pretrain (or resume) one soup and write it; returns its digest, tokens and seconds.

    Raises:
        ValueError: for settings, stores or checkpoints that do not fit, and workers the cluster lacks.
    """
    runner.require_workers(settings.num_workers, settings.use_gpu)
    folder = run_folder(settings.name)
    # What was added to the store after a run began is not for that run: it goes on as it began.
    store = open_store(store_place(settings.store), num_parts=claimed(folder).get("store_parts"))
    soup, training = resolve(settings, store)
    stream = make_stream(settings, store, training)
    stream.plan.steps(training.steps - 1, training.steps)  # recorded mixtures may be too few
    stage = open_stage(
        soup_folder(settings.name),
        kind="soup",
        configuration={
            "method": settings.method,
            "soup": asdict(soup),
            "training": asdict(training),
            "embedder": read_manifest(store.folder.parent / "embeddings", "embeddings").configuration,
        },
        inputs={"domains": store.digest},
        rebuild=None,
    )
    if stage.finished is None:
        with only_writer(folder):
            of_store = stream.plan.facts | {"store_parts": stream.store_parts}
            claim_run(folder, asdict(soup) | asdict(training) | of_store)
            write_atomically(folder / SETTINGS, settings.model_dump_json(indent=1))
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
        meta_distribution(settings, training, windows_K),
        seed=settings.seed,
        batch_size=training.batch_size,
        mixtures_per_step=training.mixtures_per_step,
        store_digest=store.digest,
        sequence_length=training.sequence_length,
    )
    stream = MixtureStream(
        store_folder=store_place(settings.store),
        sequence_length=training.sequence_length,
        plan=plan,
        store_parts=len(store.parts),
    )
    return stream.for_rank(0, settings.num_workers)


def meta_distribution(
    settings: Pretrain, training: TrainingConfig, windows_K: np.ndarray
) -> MetaDistribution:
    """The law of the run's mixtures. Raises ValueError for a `ratios` file that is missing or not one."""
    if settings.method == "generic":
        return Fixed(generic_weights(windows_K))
    law, everything = settings.meta_distribution, int((windows_K > 0).sum())
    if (settings.ratios is not None) != (law == "recorded"):
        raise ValueError(
            f"meta_distribution is {law!r} and ratios is {settings.ratios!r}: a file of recorded mixtures and "
            "meta_distribution=recorded go together."
        )
    if law == "recorded":
        return read_ratios(settings.ratios)
    if law == "dirichlet":
        return Dirichlet(
            concentration=settings.concentration,
            support_size=settings.support_size,
            by_size=settings.by_size,
        )
    size = everything if law == "uniform" else training.support_size
    return Sparse(support_size=size, by_size=settings.by_size)


def stream_of_run(name: str) -> tuple[MixtureStream, int]:
    """The stream that the run of that name reads, and its steps.

    Raises:
        ValueError: there is no such run, or its store is no longer the one it began with.
    """
    folder = run_folder(name)
    if not (folder / SETTINGS).exists():
        raise ValueError(
            f"there is no run {name!r}: {folder / SETTINGS} is missing. Check the name (SOE_HOME)."
        )
    settings = Pretrain.model_validate_json((folder / SETTINGS).read_text("utf-8"))
    begun = claimed(folder)
    store = open_store(store_place(settings.store), num_parts=begun["store_parts"])
    training = resolve(settings, store)[1]
    stream = make_stream(settings, store, training)
    changed = [key for key, value in stream.plan.facts.items() if begun[key] != value]
    if changed:
        raise StoreError(f"the plan of run {name!r} can no longer be made: {', '.join(changed)} differ.")
    return stream, training.steps


if __name__ == "__main__":
    runner.main(Pretrain, run)
