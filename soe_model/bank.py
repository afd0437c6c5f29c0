"""The bank: shared parameters and experts, their combination, and the gradients of it in closed form.

With G the gradients of the W instances (eq. 2: instance = shared + coefficients @ experts),

    d shared = sum_w G_w        d experts = coefficientsᵀ G        d coefficients = G expertsᵀ

The middle one has the size of the bank and is never formed: the optimizer makes it tile by tile, and its
norm follows from two W x W Gram matrices.

Legend: W mixtures, N experts, P parameters of one model, p of them on this rank.
"""

from __future__ import annotations

import torch

from soe_model.sharding import Sharding


class Bank:
    """Shared parameters and experts of this rank's columns.

    Args:
        initial_P: the backbone's initial parameters; `shared` starts there.
        num_experts: N; 0 makes the generic twin, whose every instance is `shared`.
        expert_std: standard deviation of the experts at the start; 0 starts every instance at `shared`.
        seed: each expert has its own stream, so the bank is the same on any number of ranks.
    """

    def __init__(
        self, initial_P: torch.Tensor, *, num_experts: int, expert_std: float, seed: int, sharding: Sharding
    ):
        self.sharding = sharding
        self.shared_p = sharding.shard(initial_P).clone()
        self.experts_Np = self.shared_p.new_zeros(num_experts, sharding.width)
        if expert_std > 0:
            for j in range(num_experts):
                generator = torch.Generator().manual_seed((seed + 1) * 1_000_003 + j)
                row_P = torch.empty(sharding.num_params).normal_(std=expert_std, generator=generator)
                self.experts_Np[j] = sharding.shard(row_P)

    def combine(self, coefficients_WN: torch.Tensor) -> torch.Tensor:
        """The W instances, float32 [W, P], on every rank (eq. 2)."""
        part_Wp = torch.addmm(self.shared_p, coefficients_WN, self.experts_Np)
        return self.sharding.gather(part_Wp)

    def coefficient_gradients(self, grads_Wp: torch.Tensor) -> torch.Tensor:
        """Gradient of the coefficients, [W, N], from this rank's columns summed over all ranks."""
        return self.sharding.sum(grads_Wp @ self.experts_Np.T)

    def squared_norms(
        self, grads_Wp: torch.Tensor, coefficients_WN: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Squared norms of the gradients of `shared` and of all experts, from Gram matrices.

        ``|| sum_w G_w ||² = sum(G Gᵀ)`` and ``|| Aᵀ G ||² = sum((A Aᵀ) * (G Gᵀ))``.
        """
        gram_WW = self.sharding.sum(grads_Wp @ grads_Wp.T)
        experts = (coefficients_WN @ coefficients_WN.T * gram_WW).sum()
        return gram_WW.sum().clamp(min=0), experts.clamp(min=0)
