"""Losses of a model on token windows. Legend: n windows, L tokens in a window."""

from __future__ import annotations

import torch

from soe_model.backbone import token_losses


@torch.no_grad()
def mean_loss(model: torch.nn.Module, windows_nL1: torch.Tensor, *, batch_size: int = 32) -> float:
    """Mean next-token loss in nats per token over windows of L + 1 tokens.

    Raises ValueError if there is no window.
    """
    if not len(windows_nL1):
        raise ValueError("no whole window of tokens to evaluate on; give more text or a shorter sequence.")
    was_training = model.training
    model.eval()
    total = 0.0
    for batch in windows_nL1.split(batch_size):
        total += token_losses(model, batch).double().sum().item()
    model.train(was_training)
    return total / windows_nL1[:, 1:].numel()
