"""One pretraining step of a soup (Algorithm 2, with W mixtures a step), and the state that resumes it.

Legend: W mixtures, K domains, N experts, P parameters of one model, p on this rank, L tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from soe_model.backbone import build_backbone, token_losses
from soe_model.bank import Bank
from soe_model.flat import FlatModule
from soe_model.optimizer import Adam
from soe_model.presets import SoupConfig, TrainingConfig
from soe_model.router import Router
from soe_model.sharding import Sharding


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one step reports, equal on every rank."""

    loss: float
    """Mean over the global batch, nats per token, before the update."""
    gradient_norm: float
    """Global norm before clipping."""
    router_gradient_norm: float


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient is NaN or infinite; the parameters have not been touched."""


class SoupTrainer:
    """A bank, a router and their optimizers.

    Args:
        sharding: made from the number of parameters; by default over the current process group.
        centroids_KD: of the domains; the router starts from them (see :class:`Router`).
    """

    def __init__(
        self,
        soup: SoupConfig,
        training: TrainingConfig,
        *,
        centroids_KD: torch.Tensor | None = None,
        device: str | torch.device = "cpu",
    ):
        self.soup, self.training, self.device = soup, training, torch.device(device)
        self.backbone = build_backbone(soup.backbone, seed=training.seed, device=device)
        self.sharding = Sharding.current(self.backbone.num_params)
        self.bank = Bank(
            self.backbone.params_P,
            num_experts=soup.num_experts,
            expert_std=soup.expert_std,
            seed=training.seed,
            sharding=self.sharding,
        )
        self.router = FlatModule(_build_router(soup, training.seed, centroids_KD).to(device))
        self.step = 0
        """Steps done; the next one to run."""
        self._optimizers = {
            "shared": Adam(self.bank.shared_p, training.adam),
            "experts": Adam(self.bank.experts_Np, training.adam),
            "router": Adam(self.router.params_P, training.adam),
        }

    def train_step(
        self, tokens_BL1: torch.Tensor, mixture_B: torch.Tensor, domain_weights_WK: torch.Tensor
    ) -> StepResult:
        """Run the next step on this rank's slots of the global batch.

        Args:
            tokens_BL1: int64, this rank's sequences of L + 1 tokens.
            mixture_B: which of the W mixtures each sequence was drawn from, ascending.
            domain_weights_WK: float32, the domain weights of all W mixtures.

        Raises:
            NonFiniteLoss: before anything was updated.
        """
        coefficients_WN = self.router.module(domain_weights_WK)
        with torch.no_grad():
            instances_WP = self.bank.combine(coefficients_WN)
            loss, grads_WP = self._instance_gradients(instances_WP, tokens_BL1, mixture_B)
            grads_Wp = self.sharding.reduce_scatter(grads_WP)
            coefficient_grads_WN = self.bank.coefficient_gradients(grads_Wp)
        self.router.grads_P.zero_()
        coefficients_WN.backward(coefficient_grads_WN)
        return self._update(coefficients_WN.detach(), grads_Wp, loss)

    def _instance_gradients(
        self, instances_WP: torch.Tensor, tokens_BL1: torch.Tensor, mixture_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """This rank's share of the mean loss, and of the gradient of every instance, [W, P]."""
        tokens_in_step = self.training.batch_size * (tokens_BL1.shape[1] - 1)
        grads_WP = torch.zeros_like(instances_WP)
        loss = torch.zeros((), device=self.device)
        for w in mixture_B.unique().tolist():
            self.backbone.params_P.copy_(instances_WP[w])
            self.backbone.grads_P.zero_()
            with torch.enable_grad(), self._precision():
                share = token_losses(self.backbone.module, tokens_BL1[mixture_B == w]).sum() / tokens_in_step
                share.backward()
            grads_WP[w] = self.backbone.grads_P
            loss += share.detach()
        return loss, grads_WP

    def _update(
        self, coefficients_WN: torch.Tensor, grads_Wp: torch.Tensor, loss: torch.Tensor
    ) -> StepResult:
        shared_norm2, experts_norm2 = self.bank.squared_norms(grads_Wp, coefficients_WN)
        router_norm = self.router.grads_P.norm().item()
        norm = math.sqrt(shared_norm2.item() + experts_norm2.item() + router_norm**2)
        loss = self.sharding.sum(loss).item()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise NonFiniteLoss(f"step {self.step}: loss {loss}, gradient norm {norm}; nothing was updated.")
        scale = min(1.0, self.training.gradient_clip / max(norm, 1e-12))
        grads_Wp.mul_(scale)
        schedule = learning_rate_factor(self.step, self.training)
        rates = self.training
        self._optimizers["shared"].update(
            grads_Wp.sum(0), step=self.step, learning_rate=rates.learning_rate * schedule
        )
        self._optimizers["experts"].update_outer(
            coefficients_WN,
            grads_Wp,
            step=self.step,
            learning_rate=rates.expert_learning_rate * schedule,
        )
        if self.soup.num_experts:
            self._optimizers["router"].update(
                self.router.grads_P.mul_(scale),
                step=self.step,
                learning_rate=rates.router_learning_rate * schedule,
            )
        self.step += 1
        return StepResult(loss=loss, gradient_norm=norm, router_gradient_norm=router_norm)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything a resume needs besides the step, by name; `shared`, `experts` and their moments are
        this rank's columns, the router is whole on every rank.
        """
        named = {
            "shared": self.bank.shared_p,
            "experts": self.bank.experts_Np,
            "router": self.router.params_P,
        }
        for name, optimizer in self._optimizers.items():
            named[f"{name}.first_moment"] = optimizer.first_moment
            named[f"{name}.second_moment"] = optimizer.second_moment
        return named

    def _precision(self) -> torch.autocast:
        """bfloat16 compute on GPUs; parameters, gradients and the loss stay float32."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda")


def learning_rate_factor(step: int, training: TrainingConfig) -> float:
    """Share of the peak rate at `step` (from 0): linear warm-up, then cosine to the final fraction."""
    if step < training.warmup_steps:
        return (step + 1) / training.warmup_steps
    progress = (step - training.warmup_steps) / max(training.steps - training.warmup_steps, 1)
    final = training.final_learning_rate_fraction
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def _build_router(soup: SoupConfig, seed: int, centroids_KD: torch.Tensor | None) -> Router:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        return Router(
            soup.num_domains,
            soup.num_experts,
            hidden=soup.router_hidden,
            input_scale=soup.router_input_scale,
            output_scale=soup.router_output_scale,
            centroids_KD=centroids_KD,
        )
