"""Fine-tuning a specialist on its texts (section 3.2), if asked for with some pretraining data replayed.

A share of each batch may come from the pretraining mixture: it shields the model from forgetting what the texts do not
show. Legend: P parameters, n windows, L tokens in a window.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from soe_model.model.backbone import token_losses
from soe_model.specialists.coefficient_learning import Learned, Learning, Report, batches_of, descend
from soe_model.specialists.evaluation import mean_loss
from storage_schema.errors import UserError

LEARNING_RATE = 3e-4
"""Where none is given."""


def fine_tune(
    model: torch.nn.Module,
    params_P: torch.Tensor,
    windows_nL1: torch.Tensor,
    stopping_mL1: torch.Tensor,
    learning: Learning,
    *,
    replay: Callable[[int], torch.Tensor] | None = None,
    replay_share: float = 0.0,
    gradient_clip: float = 1.0,
    report: Report = lambda done, of: None,
) -> tuple[torch.Tensor, Learned]:
    """Train the model on the windows, with held-out early stopping.

    Args:
        model: its parameters are views of `params_P`, and both are changed: give a copy of what must stay.
        replay: number of windows → so many of the pretraining mixture, other ones at each call.
        replay_share: of each batch; the rest is of the texts.

    Returns:
        The parameters [P] with the least loss on the stopping windows (the start is one of them).

    Raises:
        ValueError: no window on one of the sides, or a share without anything to replay.
    """
    if not 0 <= replay_share < 1 or (replay_share > 0 and replay is None):
        raise UserError(
            f"replay_share is {replay_share}; it must be at least 0 and below 1, and above 0 needs a store to replay."
        )
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning.learning_rate, weight_decay=0.0)
    owed = 0.0

    def step(batch_BL1: torch.Tensor) -> None:
        nonlocal owed
        # A fraction of a window is owed to the next step, so that the share holds over many.
        owed += len(batch_BL1) * replay_share / (1 - replay_share)
        if replay is not None and (replayed := int(owed)) > 0:
            owed -= replayed
            batch_BL1 = torch.cat([batch_BL1, replay(replayed)])
        optimizer.zero_grad(set_to_none=True)
        token_losses(model, batch_BL1).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), gradient_clip)
        optimizer.step()

    return descend(
        step,
        keep=params_P.clone,
        loss=lambda: mean_loss(model, stopping_mL1),
        batches=batches_of(windows_nL1, learning),
        learning=learning,
        report=report,
    )
