"""Pretraining of a soup: one step (Algorithm 2, with W mixtures per step) and the state that resumes it.

Legend: W instances of a step, K domains, N experts, P parameters of one, L tokens; of this rank V, p and B sequences.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import nullcontext

import torch
from torch import nn

from soe_model.model.backbone import build_backbone, check_causal, token_losses
from soe_model.model.bank import Bank
from soe_model.model.flat_module import FlatModule
from soe_model.model.sharding import ALIGNMENT, Sharding, current_rank, owned_mixtures
from soe_model.optimizers import Adam
from soe_model.presets import SoupConfig, TrainingConfig
from soe_model.training.specialisation import Specialisation, share_entropy, specialisation
from soe_model.training.step import (
    StepResult,
    check_state,
    deterministic_kernels,
    learning_rate_factor,
    not_finite,
    precision,
)
from soe_model.training.step_clock import StepClock
from storage_schema.errors import UserError


class SoupTrainer:
    """A bank, a router and their optimizers, over the current process group.

    Args:
        centroids_KD: the domains' centroids; the router starts from them (see :class:`~soe_model.model.router.Router`).
        initial_P: the shared parameters at the start, float32 [P]; None: new ones, from the seed.
        router: a module from domain weights [W, K] to coefficients [W, N] in place of the soup's router; where it has
            no parameters, there is nothing of it to train.
        train_shared: False: the shared parameters stay as they are, and only the experts learn.
        generic_K: the generic mixture, float32 [K], for a training with ``train_generic``.
    """

    def __init__(
        self,
        soup: SoupConfig,
        training: TrainingConfig,
        *,
        centroids_KD: torch.Tensor | None = None,
        initial_P: torch.Tensor | None = None,
        router: nn.Module | None = None,
        train_shared: bool = True,
        generic_K: torch.Tensor | None = None,
        device: str | torch.device = "cpu",
    ):
        self.soup, self.training, self.device = soup, training, torch.device(device)
        if training.train_generic and (generic_K is None or not soup.num_experts):
            raise UserError("train_generic needs experts and the generic mixture: give generic_K.")
        also = generic_K if training.train_generic else None
        self._generic = [] if also is None else [also[None].to(self.device)]
        common, (rank, world_size) = int(training.train_generic), current_rank()
        self.backbone = build_backbone(
            soup.backbone,
            seed=training.seed,
            device=device,
            instances=len(owned_mixtures(training.mixtures_per_step, rank, world_size)) + common,
            multiple=ALIGNMENT * world_size,
        )
        check_causal(self.backbone.module)
        if initial_P is not None:
            self.backbone.params_P.copy_(initial_P)
        self._losses = torch.compile(token_losses, dynamic=False) if training.compile_model else token_losses
        self.sharding = Sharding.current(self.backbone.num_params, common=common)
        self.bank = Bank(
            self.backbone.params_P,
            num_experts=soup.num_experts,
            expert_std=soup.expert_std,
            expert_rank=soup.expert_rank,
            seed=training.seed,
            sharding=self.sharding,
            layout=self.backbone.layout,
            adam=training.adam,
            optimizer=training.optimizer,
        )
        if router is None:
            router = soup.new_router(training.seed + 1, centroids_KD)
        self.router, self._train_shared = FlatModule(router.to(device)), train_shared
        self._router_optimizer = Adam(self.router.params_P, training.adam)
        self.clock = StepClock(self.device)
        """Times ``combine``, ``forward_backward`` and ``update``, with all communication that is not in ``combine``."""
        self.step = 0
        """Number of steps done, and so of the next one."""

    def train_step(
        self, tokens_BL1: torch.Tensor, mixture_B: torch.Tensor, domain_weights_WK: torch.Tensor
    ) -> StepResult:
        """Run the next step on this rank's slots of the global batch.

        Args:
            tokens_BL1: int64, this rank's sequences of L + 1 tokens.
            mixture_B: int64, the mixture of each sequence, ascending. Keep it on the CPU: reading it there makes no
                GPU wait.
            domain_weights_WK: float32, the domain weights of all W mixtures.

        Raises:
            NonFiniteLoss: the loss or its gradient is not finite; nothing was updated.
        """
        with deterministic_kernels() if self.training.deterministic else nullcontext():
            return self._train_step(tokens_BL1, mixture_B, domain_weights_WK)

    def _train_step(
        self, tokens_BL1: torch.Tensor, mixture_B: torch.Tensor, domain_weights_WK: torch.Tensor
    ) -> StepResult:
        self.clock.begin()
        coefficients_WN = self._coefficients(domain_weights_WK)
        with torch.no_grad():
            self.bank.combine(coefficients_WN, self.backbone.padded_params_WP)
            self.clock.end_of("combine")
            loss_W = self._instance_gradients(tokens_BL1, mixture_B)
            self.clock.end_of("forward_backward")
            grads_Wp = self.sharding.from_owners(self.backbone.padded_grads_WP, len(loss_W))
            coefficient_grads_WN = self.bank.coefficient_gradients(coefficients_WN, grads_Wp)
        if coefficients_WN.requires_grad:
            self.router.grads_P.zero_()
            coefficients_WN.backward(coefficient_grads_WN)
        result = self._update(coefficients_WN.detach(), grads_Wp, self.sharding.sum(loss_W))
        self.clock.end_of("update")
        return result

    def _coefficients(self, domain_weights_WK: torch.Tensor) -> torch.Tensor:
        """Of the step's instances: those of its mixtures, then the generic one if that is trained."""
        return self.router.module(torch.cat([domain_weights_WK, *self._generic]))

    def _instance_gradients(self, tokens_BL1: torch.Tensor, mixture_B: torch.Tensor) -> torch.Tensor:
        """Compute the gradients of this rank's instances; return its share of each one's part of the loss, [W].

        If the generic instance is trained too, it is the last, and the gradient is that of the mean of both losses.
        """
        common, tokens_in_step = self.sharding.common, self.training.batch_size * (tokens_BL1.shape[1] - 1)
        loss_W = torch.zeros(self.training.mixtures_per_step + common, device=self.device)
        self.backbone.padded_grads_WP.zero_()
        for w, tokens in self._micro_batches(tokens_BL1, mixture_B):
            with torch.enable_grad(), precision(self.device):
                share = self._losses(self.backbone.module, tokens).sum() / tokens_in_step
                (share / (1 + common)).backward()
            loss_W[w] += share.detach()
        return loss_W

    def _micro_batches(
        self, tokens_BL1: torch.Tensor, mixture_B: torch.Tensor
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """This rank's mixtures and tokens, with the backbone being the mixture's instance meanwhile."""
        num_mixtures, size = self.training.mixtures_per_step, self.training.micro_batch_size
        # All lengths at once: with a comparison for each mixture the GPU would wait for each.
        lengths = mixture_B.bincount(minlength=num_mixtures).tolist()
        for place, w in enumerate(self.sharding.owned(num_mixtures + self.sharding.common)):
            self.backbone.use(place)
            start = sum(lengths[:w])
            of_instance = tokens_BL1 if w == num_mixtures else tokens_BL1[start : start + lengths[w]]
            for tokens in of_instance.split(size or max(len(of_instance), 1)):
                yield w, tokens
        self.backbone.use(0)

    def _update(
        self, coefficients_WN: torch.Tensor, grads_Wp: torch.Tensor, loss_W: torch.Tensor
    ) -> StepResult:
        shared_norm2, experts_norm2 = self.bank.squared_norms(coefficients_WN, grads_Wp)
        router_norm = self.router.grads_P.norm().item()
        if not self._train_shared:
            shared_norm2.zero_()
        norm = math.sqrt(shared_norm2.item() + experts_norm2.item() + router_norm**2)
        num_mixtures = self.training.mixtures_per_step
        loss = loss_W[:num_mixtures].sum().item()
        if not (loss_W.isfinite().all() and math.isfinite(norm)):
            squares_W = self.sharding.sum(grads_Wp.square().sum(1))
            raise not_finite(self.step, loss, norm, loss_W + squares_W, num_mixtures)
        entropy = share_entropy(coefficients_WN[:num_mixtures])
        scale = min(1.0, self.training.gradient_clip / max(norm, 1e-12))
        rates, schedule = self.training, learning_rate_factor(self.step, self.training)
        self.bank.update(
            coefficients_WN,
            grads_Wp,
            scale=scale,
            step=self.step,
            shared_rate=rates.learning_rate * schedule if self._train_shared else 0.0,
            expert_rate=rates.expert_learning_rate * schedule,
        )
        if self.soup.num_experts and self.router.num_params:
            self._router_optimizer.update(
                self.router.grads_P.mul_(scale),
                step=self.step,
                learning_rate=rates.router_learning_rate * schedule,
            )
        self.step += 1
        return StepResult(
            loss=loss, gradient_norm=norm, router_gradient_norm=router_norm, router_entropy=entropy
        )

    @torch.no_grad()
    def instantiate(self, domain_weights_WK: torch.Tensor) -> torch.Tensor:
        """The models of domain weights (eq. 2), float32 [W, P] on every rank; all ranks call it together."""
        return self.bank.instances(self.router.module(domain_weights_WK.to(self.device)))

    @torch.no_grad()
    def instance_losses(
        self, tokens_BL1: torch.Tensor, mixture_B: torch.Tensor, domain_weights_WK: torch.Tensor
    ) -> torch.Tensor:
        """The loss of each mixture's instance on its own part of a batch, in nats per token, float32 [W] on every rank;
        arguments as :meth:`train_step`. Nothing learns; all ranks call it together.
        """
        tokens_of_mixture = self.training.batch_size // len(domain_weights_WK) * (tokens_BL1.shape[1] - 1)
        self.bank.combine(self._coefficients(domain_weights_WK), self.backbone.padded_params_WP)
        loss_W = torch.zeros(len(domain_weights_WK), device=self.device)
        for w, tokens in self._micro_batches(tokens_BL1, mixture_B):
            if w < len(loss_W):
                with precision(self.device):
                    loss_W[w] += self._losses(self.backbone.module, tokens).sum() / tokens_of_mixture
        return self.sharding.sum(loss_W)

    @torch.no_grad()
    def specialisation(self, domain_weights_MK: torch.Tensor) -> Specialisation:
        """Whether the bank specialises, by its experts and these mixtures; all ranks call it together, which reads
        the bank once and takes N² P multiplications, as much as to combine N mixtures.
        """
        coefficients_MN = self.router.module(domain_weights_MK.to(self.device))
        return specialisation(coefficients_MN, self.bank.gram())

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a resume needs besides the step, by name. :meth:`is_whole` says which are only this rank's share."""
        moments = {f"router.{name}": tensor for name, tensor in self._router_optimizer.tensors().items()}
        return {"router": self.router.params_P} | moments | self.bank.tensors()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Copies of :meth:`tensors` and of the step."""
        copies = {name: tensor.detach().clone() for name, tensor in self.tensors().items()}
        return {"step": torch.tensor(self.step)} | copies

    def load_state_dict(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Become the trainer whose state this is. Raises ValueError, naming the first tensor that does not fit."""
        mine = self.tensors()
        check_state(mine | {"step": torch.tensor(self.step)}, tensors)
        for name, tensor in mine.items():
            tensor.copy_(tensors[name])
        self.step = int(tensors["step"].item())

    def is_whole(self, name: str) -> bool:
        """Whether every rank holds all of this tensor and not only its columns (or blocks of columns)."""
        return name.startswith("router") or (self.soup.expert_rank is not None and name.startswith("experts"))
