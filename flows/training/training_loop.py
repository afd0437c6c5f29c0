"""What each training worker does: restore, take batches from the stream, step, report."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import torch
from ray.train import CheckpointUploadMode

from flows.training import fatal_errors
from flows.training.checkpoints import Checkpoints
from flows.training.run_reporter import LOG_EVERY, Watch
from pipeline.cores import available_cores, compute_on
from pipeline.mixtures.meta_distributions import window_shares
from pipeline.stream.batches import Batch, MixtureStream
from soe_model.files.write_soup import write_soup
from soe_model.training.step import NonFiniteLoss, StepResult
from soe_model.training.trainer import SoupTrainer
from storage_schema.json_files import read_json
from storage_schema.layout import DOMAIN_WORDS
from storage_schema.manifest import write_atomically

MEASURE_EVERY = 5 * LOG_EVERY
"""Steps between two looks at whether the bank specialises."""
PROBES = 64
"""Mixtures that are looked at: the run's own first ones, always the same."""


class Diverged(RuntimeError):
    """A loss or gradient is not finite; the message says where it came from."""


def train_loop(config: dict[str, Any]) -> None:
    """Ray Train runs this function on every worker. It records unrecoverable errors so that Ray does not retry."""
    folder = Path(config["run_folder"])
    if fatal_errors.stopped(folder) is not None:
        return
    try:
        _train(config)
    except Diverged as error:  # on every rank in the same step, so all return
        if ray.train.get_context().get_world_rank() == 0:
            fatal_errors.stop(folder, str(error))
    except Exception as error:
        if (message := fatal_errors.fatal(error, asked=config["asked"])) is not None:
            fatal_errors.stop(folder, message)
        raise


def _train(config: dict[str, Any]) -> None:
    context = ray.train.get_context()
    compute_on(_threads(config["cores_per_worker"], workers_here=context.get_local_world_size()))
    device = ray.train.torch.get_device()
    stream: MixtureStream = ray.train.get_dataset_shard("train")
    store = stream.open_store()
    tree, words = store.tree, _domain_words(store.folder.parent / DOMAIN_WORDS)
    centroids_KD = torch.from_numpy(tree.leaves_KD)
    windows_K = store.windows_K(config["training"].sequence_length)
    generic_K = torch.from_numpy(window_shares(windows_K)).float()
    trainer = SoupTrainer(
        config["soup"], config["training"], centroids_KD=centroids_KD, generic_K=generic_K, device=device
    )
    run = _Run(config, stream, trainer, generic_K, is_first=context.get_world_rank() == 0)
    run.restore()
    run.to_the_end()
    write_soup(
        config["soup_folder"],
        trainer,
        tree=tree,
        tokenizer=store.folder.parent / "tokenizer/tokenizer.json",
        windows_K=windows_K,
        domain_words=words,
    )
    run.write_summary()


def _threads(cores_per_worker: int | None, *, workers_here: int) -> int:
    """How many cores a worker uses: those that it was given, or its share of the machine's."""
    cores = available_cores()
    return min(cores_per_worker, cores) if cores_per_worker else max(1, cores // workers_here)


def _domain_words(path: Path) -> list[list[str]] | None:
    """The words of each domain; None for a store without an atlas. Raises ValueError for a damaged file."""
    try:
        return read_json(path)
    except FileNotFoundError:
        return None


class _Run:
    """One worker's way through the steps."""

    def __init__(
        self,
        config: dict[str, Any],
        stream: MixtureStream,
        trainer: SoupTrainer,
        generic_K: torch.Tensor,
        *,
        is_first: bool,
    ):
        self._generic_K = generic_K
        self.stream, self.trainer, self.is_first = stream, trainer, is_first
        self.folder = Path(config["run_folder"])
        self.checkpoints = Checkpoints(self.folder, trainer, plan_digest=stream.plan.digest)
        self.steps, self.checkpoint_every = trainer.training.steps, config["checkpoint_every"]
        self.report_every = config["report_every"]
        self.train_seconds = 0.0

    def restore(self) -> None:
        notes = self.checkpoints.restore()
        if notes is None:
            return
        self.train_seconds = notes["train_seconds"]
        if self.is_first:
            size = self.trainer.sharding.world_size
            print(f"resuming at step {self.trainer.step} of {self.steps} on {size} workers", flush=True)

    def to_the_end(self) -> None:
        trainer = self.trainer
        if trainer.step >= self.steps:
            return
        watched = (
            Watch(self.folder, trainer, self.stream, self.checkpoints) if self.is_first else nullcontext()
        )
        with watched as watch:
            clock = None
            for batch in self.stream.through_ray(trainer.step, self.steps):
                arrived = time.monotonic()
                clock = clock or arrived  # the first batch waits for Ray to start its actors
                result = self._step(batch)
                measured = self._measured()
                now = time.monotonic()
                seconds, waited, clock = now - clock, arrived - clock, now
                self.train_seconds += seconds
                if watch:
                    watch.after_step(
                        result,
                        measured,
                        seconds=seconds,
                        waited=waited,
                        train_seconds=self.train_seconds,
                    )
                if trainer.step % self.checkpoint_every == 0 or trainer.step == self.steps:
                    self.checkpoints.begin(self._metrics(result), {"train_seconds": self.train_seconds})
                    clock = time.monotonic()
                elif trainer.step % self.report_every == 0:
                    # Queued behind a checkpoint that is still being written, without waiting for it.
                    ray.train.report(self._metrics(result), checkpoint_upload_mode=CheckpointUploadMode.ASYNC)
        self.checkpoints.wait()

    def _step(self, batch: Batch) -> StepResult:
        if batch.step != self.trainer.step:
            raise RuntimeError(
                f"the stream gave step {batch.step}, the trainer is at step {self.trainer.step}."
            )
        try:
            return self.trainer.train_step(*self._tensors(batch))
        except NonFiniteLoss as error:
            message = fatal_errors.not_finite(error.step, error.mixtures, batch.domain_weights_WK, str(error))
            raise Diverged(message) from error

    def _tensors(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Tokens, mixtures of the slots, and domain weights, each where the trainer wants it."""
        device = self.trainer.device
        tokens_BL1 = torch.from_numpy(batch.tokens_BL1.astype(np.int64)).to(device)
        return (
            tokens_BL1,
            torch.from_numpy(batch.mixture_B),
            torch.from_numpy(batch.domain_weights_WK).to(device),
        )

    def _measured(self) -> dict[str, float]:
        """Whether the bank specialises, after some steps; on all ranks, whose columns are added up."""
        due = self.trainer.step % MEASURE_EVERY == 0 or self.trainer.step == self.steps
        if not due or not self.trainer.soup.num_experts:
            return {}
        fixed = self._fixed_batch
        tokens_BL1, mixture_B, weights_WK = self._tensors(fixed)
        generic_WK = self._generic_K.to(weights_WK).expand_as(weights_WK)
        return asdict(self.trainer.specialisation(self._probes_MK)) | {
            "own_instance_loss": self.trainer.instance_losses(tokens_BL1, mixture_B, weights_WK)
            .mean()
            .item(),
            "generic_instance_loss": self.trainer.instance_losses(tokens_BL1, mixture_B, generic_WK)
            .mean()
            .item(),
        }

    @cached_property
    def _fixed_batch(self) -> Batch:
        """The last step's batch: every law has one, and the run trains on it only at its end."""
        [batch] = self.stream.in_process(self.steps - 1, self.steps)
        return batch

    @cached_property
    def _probes_MK(self) -> torch.Tensor:
        probes_MK = self.stream.plan.first_mixtures(PROBES, stop=self.steps)
        return torch.from_numpy(probes_MK.astype(np.float32))

    def _metrics(self, result: StepResult) -> dict[str, Any]:
        return {"step": self.trainer.step, "loss": result.loss}

    def write_summary(self) -> None:
        if self.is_first:
            training = self.trainer.training
            summary = {
                "tokens": training.steps * training.batch_size * training.sequence_length,
                "train_seconds": round(self.train_seconds, 3),
                "steps": training.steps,
                "parameters": self.trainer.backbone.num_params,
                "num_experts": self.trainer.soup.num_experts,
            }
            write_atomically(self.folder / "summary.json", json.dumps(summary, indent=1))
