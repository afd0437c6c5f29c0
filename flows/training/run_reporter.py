"""What the first worker of a run shows: a log, TensorBoard events, Ray metrics and progress."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from flows.reporting.progress import progress
from flows.training.checkpoints import Checkpoints
from flows.training.run_log import RunLog
from flows.training.run_metrics import STEP_PHASES, RunMetrics
from pipeline.mixtures.tally import MixtureTally
from pipeline.stream.batches import MixtureStream
from soe_model.training.step import StepResult, learning_rate_factor
from soe_model.training.trainer import SoupTrainer

LOG_EVERY = 10
"""Steps between two rows of the log."""


class Watch(AbstractContextManager):
    """Shows the run in `folder`, from the step at which `trainer` is."""

    def __init__(
        self, folder: Path, trainer: SoupTrainer, stream: MixtureStream, checkpoints: Checkpoints
    ) -> None:
        self._trainer, self._checkpoints = trainer, checkpoints
        self._log = RunLog(folder, step=trainer.step)
        self._metrics = RunMetrics(folder.name)
        self._tally = MixtureTally(stream.plan)
        self._shown = progress(f"pretrain {folder.name}", "steps")
        self._looked, self._seconds, self._waited = trainer.step, 0.0, 0.0
        self._note = ""

    def __enter__(self) -> Watch:
        self._report = self._shown.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._shown.__exit__(*raised)
        self._log.close()

    def after_step(
        self,
        result: StepResult,
        measured: Mapping[str, float],
        *,
        seconds: float,
        waited: float,
        train_seconds: float,
    ) -> None:
        """Report a step that took `seconds`, including the seconds that it `waited` for its batch.

        Args:
            measured: whether the bank specialises, where that was measured after this step; else empty.
        """
        self._seconds, self._waited = self._seconds + seconds, self._waited + waited
        step, steps = self._trainer.step, self._trainer.training.steps
        if step % LOG_EVERY == 0 or step == steps:
            self._look(result, measured, train_seconds)
        self._report(step, steps, self._note)

    def _look(self, result: StepResult, measured: Mapping[str, float], train_seconds: float) -> None:
        trainer, training = self._trainer, self._trainer.training
        count = trainer.step - self._looked
        seconds_of = {"data": self._waited, **trainer.clock.read()}
        self._tally.add(self._looked, trainer.step)
        tokens = count * training.batch_size * training.sequence_length
        rate = tokens / max(self._seconds, 1e-9)
        left = (training.steps - trainer.step) * self._seconds / count
        values = {
            "loss": result.loss,
            "gradient_norm": result.gradient_norm,
            "router_gradient_norm": result.router_gradient_norm,
            "router_entropy": result.router_entropy,
            **measured,
            "learning_rate": training.learning_rate * learning_rate_factor(trainer.step - 1, training),
            "tokens_per_second": rate,
            "mixture_distance": self._tally.distance,
            "domains_drawn": self._tally.domains_drawn,
        }
        parts = {part: seconds_of.get(part, 0.0) / count for part in STEP_PHASES}
        per_part = {f"seconds_{part}": round(value, 6) for part, value in parts.items()}
        self._log.write(trainer.step, {**values, **per_part, "train_seconds": round(train_seconds, 3)})
        self._metrics.add(tokens=tokens, seconds=parts)
        whole_at = self._checkpoints.whole_at
        self._metrics.set(
            {
                **values,
                "step": trainer.step,
                "steps_planned": training.steps,
                "workers": trainer.sharding.world_size,
                **({"checkpoint_unix_seconds": whole_at} if whole_at else {}),
            }
        )
        self._note = f"loss {result.loss:.3f}, {rate:,.0f} tokens/s, {_duration(left)} left"
        self._looked, self._seconds, self._waited = trainer.step, 0.0, 0.0


def _duration(seconds: float) -> str:
    """In its two largest units: ``3 d 4 h``, ``4 h 12 min``, ``12 min``, ``40 s``."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours = round(seconds / 3600)
    return f"{minutes // 60} h {minutes % 60} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"
