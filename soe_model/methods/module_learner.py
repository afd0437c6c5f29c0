"""A run that trains a module in plain autograd, on one worker: for methods whose models are not one vector each.

Its steps are those of :class:`~soe_model.training.trainer.SoupTrainer` without a bank: the same schedule, clipping,
precision and Adam.

Legend: W mixtures, K domains, B sequences, L tokens in a sequence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext

import torch
from torch import nn

from soe_model.model.backbone import token_losses
from soe_model.optimizers.adam import apply
from soe_model.presets import TrainingConfig
from soe_model.training.step import (
    NonFiniteLoss,
    StepResult,
    check_state,
    deterministic_kernels,
    learning_rate_factor,
    precision,
)


class ModuleLearner:
    """Trains some parameters of a module and freezes the others.

    Args:
        module: a causal language model of transformers, or one with more layers in it.
        rates: peak learning rate of each parameter to train, by its name in the module.
        of_router: whether the parameter of that name is a router's, for what a step reports.
        router_entropy: entropy in nats of what the routers chose in the last forward pass, as
            :attr:`StepResult.router_entropy`.
        losses: as :func:`token_losses`, with what else is to be lowered; a step reports its mean.
    """

    def __init__(
        self,
        module: nn.Module,
        training: TrainingConfig,
        *,
        rates: Mapping[str, float],
        of_router: Callable[[str], bool] = lambda name: False,
        router_entropy: Callable[[], float] = lambda: 0.0,
        losses: Callable[[nn.Module, torch.Tensor], torch.Tensor] = token_losses,
    ):
        self.module, self.training = module, training
        self._rates, self._of_router, self._router_entropy = rates, of_router, router_entropy
        self._trained: dict[str, nn.Parameter] = {}
        for name, parameter in module.named_parameters():
            parameter.grad = None
            parameter.requires_grad_(name in rates)
            if name in rates:
                self._trained[name] = parameter
        assert self._trained.keys() == rates.keys(), "each rate is of a parameter"
        self._moments = {
            name: (torch.zeros_like(parameter.data), torch.zeros_like(parameter.data))
            for name, parameter in self._trained.items()
        }
        self._losses = torch.compile(losses, dynamic=False) if training.compile_model else losses
        self.step = 0
        """Number of steps done, and so of the next one."""

    def train_step(
        self, tokens_BL1: torch.Tensor, mixture_B: torch.Tensor, domain_weights_WK: torch.Tensor
    ) -> StepResult:
        """Run the next step on a batch. From which mixtures it was drawn makes no difference.

        Raises:
            NonFiniteLoss: the loss or its gradient is not finite; nothing was updated. It names all mixtures, which
                are not told apart here.
        """
        with deterministic_kernels() if self.training.deterministic else nullcontext():
            loss = self._gradients(tokens_BL1)
        gradients = {name: p.grad for name, p in self._trained.items() if p.grad is not None}
        squares = {name: gradient.square().sum().item() for name, gradient in gradients.items()}
        norm = math.sqrt(sum(squares.values()))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise NonFiniteLoss(
                f"step {self.step}: loss {loss}, gradient norm {norm}; nothing was updated.",
                step=self.step,
                mixtures=list(range(len(domain_weights_WK))),
            )
        self._update(gradients, scale=min(1.0, self.training.gradient_clip / max(norm, 1e-12)))
        self.step += 1
        return StepResult(
            loss=loss,
            gradient_norm=norm,
            router_gradient_norm=math.sqrt(sum(squares[name] for name in squares if self._of_router(name))),
            router_entropy=self._router_entropy(),
        )

    def _gradients(self, tokens_BL1: torch.Tensor) -> float:
        """Compute the gradient of the batch's mean loss, which is returned."""
        for parameter in self._trained.values():
            parameter.grad = None
        self.module.train()
        device = next(self.module.parameters()).device
        loss = torch.zeros((), device=device)
        tokens_in_step = tokens_BL1[:, 1:].numel()
        # Random choices in the module are the step's own, whatever was drawn before: a resume draws the same.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed((self.training.seed << 32) + self.step)
            for tokens in tokens_BL1.split(self.training.micro_batch_size or len(tokens_BL1)):
                with precision(device):
                    share = self._losses(self.module, tokens.to(device)).sum() / tokens_in_step
                share.backward()
                loss += share.detach()
        return loss.item()

    @torch.no_grad()
    def _update(self, gradients: Mapping[str, torch.Tensor], *, scale: float) -> None:
        schedule = learning_rate_factor(self.step, self.training)
        for rate in set(self._rates.values()):
            rows = [
                (self._trained[name].data, gradient.mul_(scale), *self._moments[name])
                for name, gradient in gradients.items()
                if self._rates[name] == rate
            ]
            apply(rows, self.training.adam, self.step, rate * schedule)

    def instantiate(self, domain_weights_WK: torch.Tensor) -> list[nn.Module]:
        """The module itself for each target: it is one model for all domain weights."""
        return [self.module.eval()] * len(domain_weights_WK)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What a resume needs besides the frozen parameters, by name: the trained ones, Adam's moments, the step."""
        found = {"step": torch.tensor(self.step)}
        for name, parameter in self._trained.items():
            first, second = self._moments[name]
            found |= {name: parameter.data, f"{name}.first_moment": first, f"{name}.second_moment": second}
        return {name: tensor.detach().clone() for name, tensor in found.items()}

    def load_state_dict(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Become the learner whose state this is. Raises ValueError, naming the first tensor that does not fit."""
        mine = self.state_dict()
        check_state(mine, tensors)
        for name, parameter in self._trained.items():
            parameter.data.copy_(tensors[name])
            for moment, which in zip(self._moments[name], ("first", "second"), strict=True):
                moment.copy_(tensors[f"{name}.{which}_moment"])
        self.step = int(tensors["step"].item())
