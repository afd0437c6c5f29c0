"""What all trainers have in common: a step's result and refusal, its rate and precision, and the check of a resume."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from soe_model.presets import TrainingConfig
from storage_schema.errors import UserError


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step reports; equal on every rank."""

    loss: float
    """Mean over the global batch before the update, in nats per token."""
    gradient_norm: float
    """Norm of the whole gradient before clipping."""
    router_gradient_norm: float
    router_entropy: float
    """Entropy of the shares |alpha_j| / sum |alpha| in nats, mean over the mixtures: ln N if all experts weigh the
    same, 0 if one expert has all the weight or there are no experts."""


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient is NaN or infinite; no parameter was changed.

    Args:
        step: the number of the step, from 0.
        mixtures: the mixtures of that step whose loss or gradient is not finite.
    """

    def __init__(self, message: str, *, step: int, mixtures: list[int]):
        super().__init__(message)
        self.step, self.mixtures = step, mixtures


def not_finite(
    step: int, loss: float, norm: float, of_instances_W: torch.Tensor, num_mixtures: int
) -> NonFiniteLoss:
    """The error of a step whose loss or gradient is not finite.

    Args:
        of_instances_W: not finite for the instances that caused it: those of the mixtures, then the generic one.
    """
    instances = (~of_instances_W.isfinite()).nonzero().flatten().tolist()
    mixtures = [w for w in instances if w < num_mixtures]
    generic = " and the generic instance" if mixtures != instances else ""
    return NonFiniteLoss(
        f"step {step}: loss {loss}, gradient norm {norm}, of mixtures {mixtures}{generic}; nothing was updated.",
        step=step,
        mixtures=mixtures,
    )


@contextmanager
def deterministic_kernels() -> Iterator[None]:
    """Use PyTorch's bitwise reproducible kernels inside; the setting is global, so it is put back afterwards."""
    before = torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=only_warned)


def learning_rate_factor(step: int, training: TrainingConfig) -> float:
    """Share of the peak rate at `step` (from 0): a linear warm-up, then a cosine to the final fraction."""
    if step < training.warmup_steps:
        return (step + 1) / training.warmup_steps
    progress = (step - training.warmup_steps) / max(training.steps - training.warmup_steps, 1)
    final = training.final_learning_rate_fraction
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def precision(device: torch.device) -> torch.autocast:
    """Compute in bfloat16 on GPUs; parameters, gradients and the loss stay float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


def check_state(mine: Mapping[str, torch.Tensor], saved: Mapping[str, torch.Tensor]) -> None:
    """Raise UserError, naming the first tensor that does not fit, unless a saved state has the names and shapes of
    `mine`.
    """
    for name in sorted(mine.keys() ^ saved.keys()):
        whose = "is missing from" if name in mine else "is not of this run but in"
        raise UserError(f"tensor {name} {whose} the saved state; begin the same run as then.")
    for name, tensor in mine.items():
        if tensor.shape != saved[name].shape:
            raise UserError(
                f"tensor {name} has shape {list(saved[name].shape)} in the saved state and {list(tensor.shape)} here; "
                "begin the same run as then."
            )
