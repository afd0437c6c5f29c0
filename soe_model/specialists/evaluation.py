"""Losses of a model on token windows. Legend: n windows, L tokens in a window, b resamples."""

from __future__ import annotations

import torch

from soe_model.model.backbone import token_losses
from storage_schema.errors import UserError

NORMAL_90 = 1.645
"""Standard deviations on either side of a normal distribution's mean that hold 90% of it."""
STUDENT_90 = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812)
"""The same of Student's distribution with 1, 2, … 10 degrees of freedom."""


@torch.no_grad()
def window_losses(model: torch.nn.Module, windows_nL1: torch.Tensor, *, batch_size: int = 32) -> torch.Tensor:
    """Mean next-token loss in nats per token of each window of L + 1 tokens (on any device), float64 [n].

    Raises ValueError if there is no window.
    """
    if not len(windows_nL1):
        raise UserError("no whole window of tokens to evaluate on; give more text or a shorter sequence.")
    was_training = model.training
    model.eval()
    found = [token_losses(model, batch).double().mean(1) for batch in windows_nL1.split(batch_size)]
    model.train(was_training)
    return torch.cat(found)


def mean_loss(model: torch.nn.Module, windows_nL1: torch.Tensor, *, batch_size: int = 32) -> float:
    """Mean next-token loss in nats per token over all windows; arguments and errors as above."""
    return window_losses(model, windows_nL1, batch_size=batch_size).mean().item()


def student_90(values: int) -> float:
    """Standard errors on either side of the mean of 2 or more values that make a 90% interval, within 0.02.

    Raises ValueError for fewer: they have no standard error.
    """
    if values < 2:
        raise ValueError(f"{values} values have no standard error")
    return STUDENT_90[values - 2] if values - 2 < len(STUDENT_90) else NORMAL_90 + 1.53 / (values - 1)


def normal_interval(value: float, resampled_b: torch.Tensor) -> tuple[float, float]:
    """90% around a value by the bootstrap's standard error: of few resamples that is known better than their tails
    (Efron and Tibshirani 1993, chapters 6 and 13). Raises ValueError for fewer than two resamples.
    """
    if len(resampled_b) < 2:
        raise UserError(f"{len(resampled_b)} resamples have no standard error; take 2 or more.")
    half = NORMAL_90 * resampled_b.std().item()
    return value - half, value + half


def bootstrap_interval(
    values_n: torch.Tensor, *, resamples: int = 1000, coverage: float = 0.9, seed: int = 0
) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean: where it lies had other values of the same kind been drawn."""
    generator = torch.Generator().manual_seed(seed)
    chosen_bn = torch.randint(len(values_n), (resamples, len(values_n)), generator=generator)
    means_b = values_n[chosen_bn].mean(1)
    tails = torch.tensor([(1 - coverage) / 2, (1 + coverage) / 2], dtype=means_b.dtype)
    low, high = torch.quantile(means_b, tails).tolist()
    return low, high
