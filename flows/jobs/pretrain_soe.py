"""The pretraining job: a Ray Train group of workers, fed by the mixture stream.

    python -m flows.jobs.pretrain_soe --config '{"store": "environment", "preset": "tiny"}'

The run's folder (SOE_HOME/runs/<name>) holds its settings, checkpoints, log.jsonl and summary.json; the
finished soup goes to SOE_HOME/soups/<name>. If the name is an s3:// URI, both go there
(flows/training/elsewhere.py). The same command resumes a run that was cut off.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

from flows.cluster import session
from flows.jobs import runner
from flows.reporting.progress import progress
from flows.settings import Pretrain
from flows.training import fatal_errors
from flows.training.custom_backbone import check_special_tokens
from flows.training.elsewhere import written_run
from flows.training.fit_check import check_disk, check_fits
from flows.training.resolve_run import SETTINGS, ResolvedRun, make_stream, resolve
from flows.training.run_record import claim_run, claimed, summary_of
from pipeline.remote.store import open_store
from pipeline.reports.audit import verify_domains
from pipeline.stream.batches import MixtureStream
from soe_model.presets import TrainingConfig
from storage_schema.domains import DomainStore
from storage_schema.errors import UserError
from storage_schema.layout import run_folder, soup_to_write, store_place
from storage_schema.lock import only_writer
from storage_schema.manifest import read_manifest, write_atomically
from storage_schema.stage import open_stage

MAY_CHANGE_ON_RESUME = "micro_batch_size", "compile_model", "deterministic"
"""Fields of TrainingConfig that a resumed run may change: they change the result by rounding only."""


def run(settings: Pretrain) -> dict[str, Any]:
    """Pretrain (or resume) one soup and write it; returns its digest, and its tokens and seconds while the run's folder
    is there.

    Raises:
        ValueError: for settings, stores or checkpoints that do not fit, workers the cluster lacks, and a path as name.
        StoreError: the run's place elsewhere cannot be read or written, or holds another soup.
    """
    if run_folder(settings.name) == soup_to_write(settings.name):
        raise UserError(
            f"name is {settings.name!r}, which is a path. A run and its soup lie in two folders of the same name: give "
            "a name without a slash, and choose the place with SOE_HOME."
        )
    with written_run(settings.name):
        summary = _pretrain(settings)
    return summary | ({"soup": settings.name.rstrip("/")} if "://" in settings.name else {})


def _pretrain(settings: Pretrain) -> dict[str, Any]:
    cores = settings.cores_per_worker or 1
    session.require_workers(settings.least_workers, settings.use_gpu, with_data=True, cores=cores)
    folder = run_folder(settings.name)
    # A run reads only what the store held when the run began, not what was added later.
    store = open_store(store_place(settings.store), num_volumes=claimed(folder).get("store_parts"))
    resolved = resolve(settings, store)
    soup, training = resolved.soup, resolved.training
    check_special_tokens(soup.backbone, vocab_size=store.vocab_size)
    stream = make_stream(settings, store, training)
    stream.plan.check_tables(training.steps)
    if settings.verify_store:
        _verify(store)
    _require_cuda(settings.use_gpu)
    for workers in {resolved.world_sizes[0], resolved.world_sizes[-1]}:
        check_fits(resolved, num_workers=workers, use_gpu=settings.use_gpu, cores=cores)
    if not soup_to_write(settings.name).exists():
        check_disk(resolved, folder=folder, checkpoints_kept=settings.checkpoints_kept)
    stage = open_stage(
        soup_to_write(settings.name),
        kind="soup",
        configuration={
            "method": settings.method,
            "soup": asdict(soup),
            "training": _identity(training),
            "embedder": _embedder(store),
        },
        inputs={"domains": store.digest},
        rebuild=None,
    )
    if stage.damage:
        print(f"{stage.damage} The soup is written again.", flush=True)
    finished = stage.finished
    of_stream = stream.plan.facts | {"store_parts": stream.store_parts}
    train_generic = {"train_generic": training.train_generic}  # said too where it is off
    settings_of_run = asdict(soup) | _identity(training) | train_generic | of_stream
    if finished is None:
        with only_writer(folder):
            claim_run(folder, settings_of_run)
            write_atomically(folder / SETTINGS, settings.model_dump_json(indent=1))
            _fit(settings, resolved, stream, soup_folder=str(stage.work))
            finished = stage.finish({"steps": training.steps})
    else:
        if claimed(folder):
            claim_run(folder, settings_of_run)  # the soup itself does not say which mixtures it read
        print(f"{stage.folder} is finished; nothing to train.", flush=True)
    return {**summary_of(folder), "soup": str(stage.folder), "digest": finished.digest}


def _embedder(store: DomainStore) -> dict[str, Any]:
    """The embedder of the store, which the texts of specialists need too: configuration and digest of the weights."""
    embeddings = read_manifest(store.folder.parent / "embeddings", "embeddings")
    return embeddings.configuration | {"weights": embeddings.inputs.get("model")}


def _verify(store: DomainStore) -> None:
    with progress("verify the store", "files") as report:
        verify_domains(store, report=report)


def _identity(training: TrainingConfig) -> dict[str, Any]:
    """The settings that identify a run: its training, without what only says how a machine does it."""
    return {name: value for name, value in training.described().items() if name not in MAY_CHANGE_ON_RESUME}


def _fit(settings: Pretrain, resolved: ResolvedRun, stream: MixtureStream, *, soup_folder: str) -> None:
    """Run the workers to the end; Ray restarts a failed group from the newest checkpoint.

    Raises ValueError for an error that would come again (see flows/training/fatal_errors.py).
    """
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig

    from flows.training.mixture_data import MixtureDataConfig
    from flows.training.ray_internals.checkpoint_registry import mend
    from flows.training.ray_internals.even_scaling import EvenTorchTrainer
    from flows.training.training_loop import train_loop

    # On a small, busy machine a worker's first import of torch takes longer than the 60 s that Ray Train waits. And
    # each of a worker's lines should be in the log once.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "300")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    folder = run_folder(settings.name)
    least, most = settings.least_workers, settings.num_workers
    asked = _asked(settings, resolved)
    loop: dict[str, Any] = {
        "soup": resolved.soup,
        "training": resolved.training,
        "soup_folder": soup_folder,
        "run_folder": str(folder),
        "checkpoint_every": settings.checkpoint_every,
        "report_every": settings.report_every,
        "asked": asked,
        "cores_per_worker": settings.cores_per_worker,
    }
    trainer = EvenTorchTrainer(
        train_loop,
        train_loop_config=loop,
        datasets={"train": lambda: stream},
        dataset_config=MixtureDataConfig(),
        scaling_config=ScalingConfig(
            num_workers=most if least == most else (least, most),
            use_gpu=settings.use_gpu,
            resources_per_worker=None if settings.use_gpu else {"CPU": settings.cores_per_worker or 1},
            elastic_resize_monitor_interval_s=settings.resize_check_seconds,
        ),
        run_config=RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            checkpoint_config=CheckpointConfig(num_to_keep=settings.checkpoints_kept),
            failure_config=FailureConfig(max_failures=3, controller_failure_limit=3),
        ),
        allowed=resolved.world_sizes,
    )
    if (mended := mend(folder)) is not None:
        print(mended, flush=True)
    fatal_errors.to_the_end(trainer.fit, folder, asked=asked)


def _asked(settings: Pretrain, resolved: ResolvedRun) -> str:
    soup, training = resolved.soup, resolved.training
    of_model = f"preset {settings.preset}" if settings.backbone is None else "the given backbone"
    return (
        f"{of_model}, {soup.num_experts} experts, optimizer {training.optimizer}, batch_size {training.batch_size}, "
        f"micro_batch_size {training.micro_batch_size} and {settings.num_workers} workers"
    )


def _require_cuda(use_gpu: bool) -> None:
    """Raise ValueError if torch cannot use a GPU that Ray counts: the workers would fail one by one."""
    if not use_gpu:
        return
    import ray

    @ray.remote(num_gpus=1)
    def has_cuda() -> bool:
        import torch

        return torch.cuda.is_available()

    if not ray.get(has_cuda.remote()):
        raise UserError(
            "use_gpu is true and the Ray cluster counts GPUs, but torch sees none there. Install a CUDA build of "
            "torch, check the driver (nvidia-smi), or set use_gpu=false."
        )


if __name__ == "__main__":
    runner.main(Pretrain, run)
