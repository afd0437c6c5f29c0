"""Low-rank experts (section 2.6): for each matrix of the backbone an expert holds two thin factors, A and B.

An expert adds A Bᵀ to the matrix. Parameters that are not matrices, or too small for the rank, are shared only. The
factors are small: every rank holds them all and forms their gradients. The shared parameters stay sharded.

Legend: W mixtures, N experts, P parameters of one model, p of them on this rank, Q numbers of an expert's factors,
a x b a matrix, r the rank.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from soe_model.model.flat_module import ParameterSlot
from soe_model.model.sharding import Sharding
from soe_model.optimizers import Adam, AdamConfig
from soe_model.optimizers.rounding import normal, row_keys
from storage_schema.errors import UserError

GRAM_ELEMENTS = 1 << 22
"""Products of factors that are held together while the experts' inner products are computed."""


def factor_slots(layout: list[ParameterSlot], rank: int) -> list[ParameterSlot]:
    """Where A [a, r] and B [b, r] of each matrix lie in the vector of an expert's factors: ``name.A``, ``name.B``, ...

    Raises ValueError if no matrix is larger than the rank.
    """
    slots, offset = [], 0
    for slot in _matrices(layout, rank):
        for side, length in zip("AB", slot.shape, strict=True):
            slots.append(ParameterSlot(name=f"{slot.name}.{side}", shape=(length, rank), offset=offset))
            offset += length * rank
    if not slots:
        raise UserError(f"expert_rank is {rank}: no matrix of the backbone is larger. Use a lower rank.")
    return slots


def _matrices(layout: list[ParameterSlot], rank: int) -> list[ParameterSlot]:
    return [slot for slot in layout if len(slot.shape) == 2 and min(slot.shape) > rank]


def expanded(factors: dict[str, torch.Tensor], layout: list[ParameterSlot]) -> torch.Tensor:
    """The parameters that an expert's factors stand for, float32 [P]."""
    full_P = torch.zeros(layout[-1].offset + layout[-1].size)
    for slot in layout:
        if f"{slot.name}.A" in factors:
            product = factors[f"{slot.name}.A"] @ factors[f"{slot.name}.B"].T
            full_P[slot.offset : slot.offset + slot.size] = product.view(-1)
    return full_P


class LowRankExperts:
    """The factors of all experts, with exact Adam; every rank holds them all.

    Args:
        std: standard deviation of the experts' parameters at the start; with 0 only B is zero.
    """

    def __init__(
        self,
        layout: list[ParameterSlot],
        num_experts: int,
        *,
        rank: int,
        config: AdamConfig,
        seed: int,
        sharding: Sharding,
        std: float = 0.0,
        device: torch.device | str = "cpu",
    ):
        if rank < 1:
            raise UserError(f"expert_rank is {rank}; it must be at least 1.")
        self.matrices, self.slots = _matrices(layout, rank), factor_slots(layout, rank)
        self.rank, self.sharding = rank, sharding
        size = self.slots[-1].offset + self.slots[-1].size
        self.factors_NQ = normal(
            row_keys(num_experts, seed, 0, device), torch.arange(size, device=device)
        ).contiguous()
        for slot in self.slots:
            scale = rank**-0.5 if slot.name.endswith(".A") else std
            self._factor(self.factors_NQ, slot).mul_(scale)
        self._optimizer = Adam(self.factors_NQ, config)
        self._gradient_NQ: torch.Tensor | None = None

    def _factor(self, factors_NQ: torch.Tensor, slot: ParameterSlot) -> torch.Tensor:
        """One factor of all experts, as a view [N, a, r]."""
        return factors_NQ[:, slot.offset : slot.offset + slot.size].unflatten(1, slot.shape)

    def _pairs(self) -> Iterator[tuple[ParameterSlot, ParameterSlot, ParameterSlot]]:
        """Each matrix with the slots of its A and B."""
        yield from zip(self.matrices, self.slots[::2], self.slots[1::2], strict=True)

    def combine(self, shared_p: torch.Tensor, coefficients_WN: torch.Tensor, out_Wp: torch.Tensor) -> None:
        """Write ``shared + sum_j coefficient_j A_j B_jᵀ`` to `out_Wp`, this rank's columns of it."""
        out_Wp.copy_(shared_p.expand_as(out_Wp))
        mine = self.sharding.columns
        for matrix, a, b in self._pairs():
            start, stop = max(mine.start, matrix.offset), min(mine.stop, matrix.offset + matrix.size)
            if start >= stop:
                continue
            left_aNr = self._factor(self.factors_NQ, a).transpose(0, 1)
            right_Nrb = self._factor(self.factors_NQ, b).transpose(1, 2).flatten(0, 1)
            for w, coefficients_N in enumerate(coefficients_WN):
                product = (left_aNr * coefficients_N[:, None]).flatten(1) @ right_Nrb
                part = product.view(-1)[start - matrix.offset : stop - matrix.offset]
                out_Wp[w, start - mine.start : stop - mine.start] += part

    def coefficient_gradients(self, coefficients_WN: torch.Tensor, grads_Wp: torch.Tensor) -> torch.Tensor:
        """Gradient of the coefficients [W, N], to be summed over the ranks: rank 0 has all of it, the others zeros.

        It also computes the factors' gradient, which :meth:`squared_norm` and :meth:`update` need: with
        G_j = sum_w coefficient_wj G_w, dA = G_j B and dB = G_jᵀ A.
        """
        grads_WP = self.sharding.gather(grads_Wp)
        total_WN = grads_Wp.new_zeros(len(grads_Wp), len(self.factors_NQ))
        self._gradient_NQ = torch.zeros_like(self.factors_NQ)
        for matrix, a, b in self._pairs():
            left, right = self._factor(self.factors_NQ, a), self._factor(self.factors_NQ, b)
            of_left, of_right = self._factor(self._gradient_NQ, a), self._factor(self._gradient_NQ, b)
            for w, gradient in enumerate(self._gradients_of(matrix, grads_WP)):
                coefficients_N11 = coefficients_WN[w][:, None, None]
                product = gradient @ right
                total_WN[w] += (product * left).sum((1, 2))
                of_left += coefficients_N11 * product
                of_right += coefficients_N11 * (gradient.T @ left)
        return total_WN if self.sharding.rank == 0 else total_WN.zero_()

    def _gradients_of(self, matrix: ParameterSlot, grads_WP: torch.Tensor) -> torch.Tensor:
        """The gradients of one matrix, a view [W, a, b]."""
        return grads_WP[:, matrix.offset : matrix.offset + matrix.size].unflatten(1, matrix.shape)

    def gram(self) -> torch.Tensor:
        """Inner products of the experts' A Bᵀ, [N, N], on every rank: of i and j the sum of (A_iᵀ A_j) * (B_iᵀ B_j)."""
        count = len(self.factors_NQ)
        total = self.factors_NQ.new_zeros(count, count)
        at_once = max(1, GRAM_ELEMENTS // (count * self.rank**2))
        for _, a, b in self._pairs():
            left, right = self._factor(self.factors_NQ, a), self._factor(self.factors_NQ, b)
            for start in range(0, count, at_once):
                rows = slice(start, start + at_once)
                of_left = torch.einsum("nar,mas->nmrs", left[rows], left)
                total[rows] += (of_left * torch.einsum("nbr,mbs->nmrs", right[rows], right)).sum((2, 3))
        return total

    def squared_norm(self) -> torch.Tensor:
        """Squared norm of the gradient of all factors, on every rank."""
        return self._gradient().square().sum()

    def update(self, *, scale: float, step: int, learning_rate: float) -> None:
        """One step of Adam with `scale` times the factors' gradient, which it uses up. `step` counts from 0."""
        gradient_NQ = self._gradient().mul_(scale)
        self._optimizer.update(gradient_NQ, step=step, learning_rate=learning_rate)
        self._gradient_NQ = None

    def _gradient(self) -> torch.Tensor:
        assert self._gradient_NQ is not None, "coefficient_gradients comes first"
        return self._gradient_NQ

    def expert_tensors(self, number: int) -> dict[str, torch.Tensor]:
        """The factors of one expert by name."""
        row = self.factors_NQ[number : number + 1]
        return {slot.name: self._factor(row, slot)[0] for slot in self.slots}

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a checkpoint keeps, by name: [N, Q] each, the same on every rank."""
        return {"factors": self.factors_NQ} | self._optimizer.tensors()
