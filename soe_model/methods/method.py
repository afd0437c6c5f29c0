"""The interface of a method: a way to get models for domain weights, and what it costs.

A method computes with numbers only. Its caller draws the batches, reads the texts and keeps the files.

Legend: W mixtures, K domains, P parameters of one model, B sequences, L tokens in a sequence, n windows.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import nn

from soe_model.presets import SoupConfig, TrainingConfig
from soe_model.training.step import StepResult

Instance: TypeAlias = torch.Tensor | nn.Module
"""One model: its parameters, float32 [P], or a module, where it is no ordinary one (a router chooses inside)."""
Instances: TypeAlias = torch.Tensor | Sequence[nn.Module]
"""One :data:`Instance` for each target: float32 [W, P], or W modules."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One pretraining."""

    name: str
    """Different for each run of a method."""
    soup: SoupConfig
    training: TrainingConfig
    domain_weights_K: torch.Tensor | None
    """The one mixture of all steps; None: each step draws sparse ones of ``training.support_size`` domains
    (section 2.4)."""
    begins_from: str | None = None
    """An earlier run of the method, whose model this run starts with; None: it starts from new parameters."""

    @property
    def tokens(self) -> int:
        """Of all its steps."""
        return self.training.steps * self.training.batch_size * self.training.sequence_length


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a method costs, by the columns of the paper's Table 1; its last column, the loss, must be measured."""

    specialist_size: int
    """Spec. size: parameters of one specialist."""
    active_size: int | None = None
    """Those of them that one token meets; None: all."""
    pretrained_size: int
    """Pretrain. size: parameters to keep after pretraining."""
    pretraining_tokens: int
    """Pretrain. cost, in tokens of all runs."""
    pretraining_flops: float
    """Pretrain. cost, in FLOPs of all runs."""
    specialist_flops: float
    """Spec. cost: FLOPs from domain weights to one specialist."""
    specialist_tokens: int = 0
    """Tokens that are trained on from domain weights to one specialist."""
    token_flops: float
    """Spec. latency: FLOPs of one token at the full sequence length, in a specialist."""


class Trained(Protocol):
    """A trained run: its trainer, or what the caller kept of it."""

    def instantiate(self, domain_weights_WK: torch.Tensor) -> Instances:
        """The models of domain weights."""
        ...


class Learner(Trained, Protocol):
    """A run in training."""

    def train_step(
        self, tokens_BL1: torch.Tensor, mixture_B: torch.Tensor, domain_weights_WK: torch.Tensor
    ) -> StepResult:
        """The next step; see :meth:`soe_model.training.trainer.SoupTrainer.train_step`."""
        ...

    @property
    def step(self) -> int:
        """Number of steps done."""
        ...

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What a resume needs, by name."""
        ...

    def load_state_dict(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Become the learner whose state this is; begin the same run first."""
        ...


class Method(Protocol):
    """How a method pretrains, and how it makes models of what it pretrained.

    `train_step` is not the method's but its learner's, one for each run: domain experts need a run for each domain, and
    these do not fit into one process. So a method holds no trained state.
    """

    @abstractmethod
    def runs(self, targets_WK: torch.Tensor | None = None) -> list[Run]:
        """The pretrainings that are needed for targets of these domain weights; most methods do not look at them.

        Trained in this order, a run comes after the one that it begins from.
        """
        ...

    @abstractmethod
    def begin(self, run: Run, begun: Trained | None = None) -> Learner:
        """A learner for the run, before its first step.

        Args:
            begun: the trained run of the name ``run.begins_from``.
        """
        ...

    @abstractmethod
    def instantiate(
        self,
        trained: Sequence[Trained],
        domain_weights_WK: torch.Tensor,
        windows: Sequence[torch.Tensor] | None = None,
    ) -> Instances:
        """One model for each target.

        Args:
            trained: the trained runs, in the order of :meth:`runs`.
            windows: tokens [n, L + 1] of each target, for a method that chooses among models by their loss.

        Raises ValueError for weights that are no distribution over the domains.
        """
        ...

    @abstractmethod
    def loss(self, instance: Instance, windows_nL1: torch.Tensor) -> torch.Tensor:
        """Mean next-token loss of each window in nats, float64 [n]. Raises ValueError if there is no window."""
        ...

    @abstractmethod
    def cost(self) -> Cost:
        """What the method costs, before anything is trained."""
        ...
