"""How long a step takes: FLOPs of the backbone, bytes moved of the bank.

Legend: N experts, P parameters of one model, p of them on a rank, n ranks, L tokens in a sequence, h the embedding
size. All times are in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from soe_model.optimizers import bytes_of
from soe_model.planning.devices import Device
from soe_model.planning.setup import Setup


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Predicted seconds; None where the model has no number."""

    backbone: float | None
    bank: float | None

    @property
    def ratio(self) -> float | None:
        """Tokens a second of the soup over those of its plain twin, whose sending of gradients costs the same."""
        if self.backbone is None or self.bank is None:
            return None
        return self.backbone / (self.backbone + self.bank)


def step_flops(setup: Setup) -> float:
    """Of the forward and backward passes of one step: ``6 x matmul parameters + 12 layers h L`` a token (PaLM)."""
    size, training = setup.size, setup.training
    attention = 12 * size.num_layers * size.embedding_size * training.sequence_length
    return (6 * size.matmul_params + attention) * training.batch_size * training.sequence_length


def step_time(setup: Setup, device: Device, *, mfu: float | None = None) -> StepTime:
    """Backbone: FLOPs over what is reached of the peak. Bank: bytes moved over the bandwidth.

    Kernels reach 0.8 to 0.9 of a copy's bandwidth, which the bank's time leaves out. Low-rank experts cost FLOPs
    rather than bytes: no time of theirs is predicted.
    """
    mfu, ranks = mfu or device.mfu, setup.num_workers
    backbone = bank = None
    if device.peak_flops and mfu:
        backbone = step_flops(setup) / (ranks * device.peak_flops * mfu)
    if device.bandwidth and not setup.soup.expert_rank:
        _, moved = bytes_of(setup.training.optimizer)
        bank = moved * setup.soup.num_experts * setup.width / device.bandwidth
    return StepTime(backbone=backbone, bank=bank)
