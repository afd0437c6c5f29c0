"""The bank: shared parameters and experts, the instances they give, and the gradients in closed form.

With G the gradients of the W instances (eq. 2: instance = shared + coefficients @ experts),

    d shared = sum_w G_w        d experts = coefficientsᵀ G        d coefficients = G expertsᵀ

The gradient of the experts is as large as the bank and is never formed as a whole: the optimizer computes it tile by
tile, and its norm follows from two W x W Gram matrices.

Legend: W mixtures, N experts, P parameters of one model, p of them on this rank, V mixtures of this rank,
R ranks.
"""

from __future__ import annotations

import torch

from soe_model.model.flat_module import ParameterSlot, unflatten
from soe_model.model.low_rank import LowRankExperts
from soe_model.model.sharding import Sharding
from soe_model.optimizers import OPTIMIZERS, Adam, AdamConfig, AdamExperts, CompactExperts, check_name
from soe_model.optimizers.rounding import normal, row_keys


class Bank:
    """This rank's columns of the shared parameters and the experts, with their optimizers.

    Args:
        initial_P: the backbone's initial parameters; `shared` starts there.
        num_experts: N; with 0 every instance is `shared`, which is the generic twin.
        expert_std: standard deviation of the experts at the start; with 0 every instance starts at `shared`.
        seed: the experts' first values depend on (seed, expert, parameter) and not on the number of ranks.
        optimizer: name of the experts' optimizer.
        expert_rank: rank of low-rank experts (section 2.6); None: experts as large as the backbone.
    """

    def __init__(
        self,
        initial_P: torch.Tensor,
        *,
        num_experts: int,
        expert_std: float,
        seed: int,
        sharding: Sharding,
        layout: list[ParameterSlot],
        adam: AdamConfig | None = None,
        optimizer: str = "adam",
        expert_rank: int | None = None,
    ):
        self.sharding, self.layout = sharding, layout
        adam = adam or AdamConfig()
        self.shared_p = sharding.shard(initial_P).clone()
        self._shared_optimizer = Adam(self.shared_p, adam)
        device = initial_P.device
        of_experts = {"config": adam, "seed": seed, "device": device}
        if expert_rank is not None:
            self.experts: AdamExperts | CompactExperts | LowRankExperts = LowRankExperts(
                layout, num_experts, rank=expert_rank, std=expert_std, sharding=sharding, **of_experts
            )
            return
        keys_N = row_keys(num_experts, seed, 0, device)

        def fill(tile_Nt: torch.Tensor, start: int) -> None:
            columns_t = torch.arange(start, start + tile_Nt.shape[1], device=device)
            tile_Nt.copy_(expert_std * normal(keys_N, columns_t) * (columns_t < sharding.num_params))

        check_name(optimizer)
        self.experts = OPTIMIZERS[optimizer if num_experts else "adam"](
            (num_experts, sharding.width),
            first_column=sharding.rank * sharding.width,
            fill=fill if expert_std > 0 else None,
            **of_experts,
        )

    def combine(self, coefficients_WN: torch.Tensor, out_VP: torch.Tensor | None = None) -> torch.Tensor:
        """The instances of the mixtures that this rank has (eq. 2), float32 [V, R * p] with padding."""
        sharding = self.sharding
        if out_VP is None:
            mine = len(sharding.owned(len(coefficients_WN)))
            out_VP = self.shared_p.new_empty(mine, sharding.world_size * sharding.width)
        if sharding.world_size == 1:
            self.experts.combine(self.shared_p, coefficients_WN, out_VP)
        else:
            part_Wp = self.shared_p.new_empty(len(coefficients_WN), sharding.width)
            self.experts.combine(self.shared_p, coefficients_WN, part_Wp)
            sharding.to_owners(part_Wp, out_VP)
        return out_VP

    def instances(self, coefficients_WN: torch.Tensor) -> torch.Tensor:
        """All W instances, float32 [W, P], on every rank: for inspection, not for training."""
        part_Wp = self.shared_p.new_empty(len(coefficients_WN), self.sharding.width)
        self.experts.combine(self.shared_p, coefficients_WN, part_Wp)
        return self.sharding.gather(part_Wp)

    def coefficient_gradients(self, coefficients_WN: torch.Tensor, grads_Wp: torch.Tensor) -> torch.Tensor:
        """Gradient of the coefficients [W, N], summed over the columns of all ranks.

        Call it first in a step: low-rank experts compute here what :meth:`squared_norms` and :meth:`update` use.
        """
        if isinstance(self.experts, LowRankExperts):
            return self.sharding.sum(self.experts.coefficient_gradients(coefficients_WN, grads_Wp))
        return self.sharding.sum(self.experts.coefficient_gradients(grads_Wp))

    def squared_norms(
        self, coefficients_WN: torch.Tensor, grads_Wp: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Squared norm of the gradient of `shared`, and that of the gradient of all experts.

        ``|| sum_w G_w ||² = sum(G Gᵀ)`` and ``|| Aᵀ G ||² = sum((A Aᵀ) * (G Gᵀ))``.
        """
        gram_WW = self.sharding.sum(grads_Wp @ grads_Wp.T)
        if isinstance(self.experts, LowRankExperts):
            experts = self.experts.squared_norm()
        else:
            experts = (coefficients_WN @ coefficients_WN.T * gram_WW).sum()
        return gram_WW.sum().clamp(min=0), experts.clamp(min=0)

    def gram(self) -> torch.Tensor:
        """Inner products of the experts over all parameters, [N, N], on every rank; all ranks call it together."""
        gram_NN = self.experts.gram()
        return gram_NN if isinstance(self.experts, LowRankExperts) else self.sharding.sum(gram_NN)

    def update(
        self,
        coefficients_WN: torch.Tensor,
        grads_Wp: torch.Tensor,
        *,
        scale: float,
        step: int,
        shared_rate: float,
        expert_rate: float,
    ) -> None:
        """One step of both optimizers with `scale` times the instances' gradients, which it overwrites."""
        grads_Wp.mul_(scale)
        shared_gradient = grads_Wp[0] if len(grads_Wp) == 1 else grads_Wp.sum(0)
        self._shared_optimizer.update(shared_gradient, step=step, learning_rate=shared_rate)
        if isinstance(self.experts, LowRankExperts):
            self.experts.update(scale=scale, step=step, learning_rate=expert_rate)
        else:
            self.experts.update(coefficients_WN, grads_Wp, step=step, learning_rate=expert_rate)

    def expert_tensors(self, number: int) -> dict[str, torch.Tensor]:
        """The exact parameters (or factors) of one expert by name, on every rank."""
        if isinstance(self.experts, LowRankExperts):
            return self.experts.expert_tensors(number)
        return unflatten(self.sharding.gather(self.experts.row(number)[None])[0], self.layout)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a checkpoint keeps, by name."""
        moments = {f"shared.{name}": tensor for name, tensor in self._shared_optimizer.tensors().items()}
        experts = {f"experts.{name}": tensor for name, tensor in self.experts.tensors().items()}
        return {"shared": self.shared_p} | moments | experts
