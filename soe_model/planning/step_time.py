"""How much work a step is and how long it takes, from the FLOPs of the backbone and the bytes of the bank.

Legend: W mixtures of a step, N experts, P parameters of one model, p of them on a rank, n ranks, L tokens in a
sequence, h the embedding size. All times are in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from soe_model.optimizers import bytes_of
from soe_model.planning.devices import Device
from soe_model.planning.model_size import ModelSize
from soe_model.planning.setup import Setup
from soe_model.planning.state_size import bank_params

ADAM_FLOPS = 14
"""Operations of Adam per parameter and step (section 2.5)."""


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Predicted seconds per step; None where nothing is predicted."""

    backbone: float | None
    bank: float | None
    passes: int = 1
    """Of each sequence through the backbone."""

    @property
    def ratio(self) -> float | None:
        """Tokens per second of the soup, divided by its twin's; both are assumed to communicate for as long."""
        if self.backbone is None or self.bank is None:
            return None
        return self.backbone / self.passes / (self.backbone + self.bank)


def token_flops(size: ModelSize, sequence_length: int) -> float:
    """FLOPs of a token's forward pass: ``2 x matmul parameters + 4 layers h L`` (PaLM)."""
    return 2 * size.matmul_params + 4 * size.num_layers * size.embedding_size * sequence_length


def step_flops(setup: Setup) -> float:
    """FLOPs of the backbone in one step: a backward pass costs twice its forward pass (PaLM)."""
    training = setup.training
    tokens = training.batch_size * training.sequence_length * (1 + training.train_generic)
    return 3 * token_flops(setup.size, training.sequence_length) * tokens


def instance_flops(setup: Setup) -> float:
    """FLOPs from domain weights to one instance: the two layers of the router and the sum of the experts (eq. 2)."""
    soup = setup.soup
    if not soup.num_experts:
        return 0
    return 2 * soup.router_hidden * (soup.num_domains + soup.num_experts) + _products(setup)


def whole_step_flops(setup: Setup) -> float:
    """FLOPs of a whole step, over all workers: the backbone's, the bank's and Adam's.

    The bank computes W instances, the gradients of their coefficients and those of the experts; each of the three costs
    the same. The paper (section 2.5) counts N P operations for the three together. Its 14 operations of Adam per
    parameter are taken as they are.
    """
    bank = 3 * setup.instances * _products(setup)
    return step_flops(setup) + bank + ADAM_FLOPS * bank_params(setup)


def _products(setup: Setup) -> float:
    """FLOPs of one product with all experts, such as their sum for one instance."""
    of_one = setup.size.num_params
    if setup.soup.expert_rank:
        pairs = zip(setup.factors[::2], setup.factors[1::2], strict=True)
        of_one = sum(left.size * right.shape[0] for left, right in pairs)
    return 2 * setup.soup.num_experts * of_one


def step_time(setup: Setup, device: Device, *, mfu: float | None = None) -> StepTime:
    """Predict a step's time: FLOPs over the part of the peak that is reached, and the bank's bytes over the bandwidth.

    The bank's time is a lower bound: kernels reach 0.8 to 0.9 of a copy's bandwidth. Low-rank experts cost FLOPs rather
    than bytes, and their time is not predicted.
    """
    mfu, ranks = mfu or device.mfu, setup.num_workers
    backbone = bank = None
    if device.peak_flops and mfu:
        backbone = step_flops(setup) / (ranks * device.peak_flops * mfu)
    if device.bandwidth and not setup.soup.expert_rank:
        _, moved = bytes_of(setup.training.optimizer)
        bank = moved * setup.soup.num_experts * setup.width / device.bandwidth
    return StepTime(backbone=backbone, bank=bank, passes=1 + setup.training.train_generic)
