"""The work on one tile of a bank's columns, as tensor expressions that torch.compile can fuse.

Legend: W mixtures, N experts, t columns, F = FACTORED columns of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from soe_model.bounds import finite_positive, require
from soe_model.optimizers import rounding
from storage_schema.errors import UserError

CACHE_ELEMENTS = 1 << 18
"""Elements of a tile in eager mode on a CPU, so that what one expression leaves for the next stays in the cache."""
GRADIENT_ELEMENTS = 1 << 21
"""Elements of a tile that PyTorch's own Adam updates on a CPU, row by row. With smaller tiles its calls cost more than
its work (tests/benchmarks/records/2026-11-30-small-step.md)."""
FUSED_ELEMENTS = {"cpu": 1 << 24, "cuda": 1 << 27}
"""Elements of a tile otherwise: few calls, and far below 2^31."""
FACTORED = 1024
"""Columns that share the rows' second moments. One block for a whole matrix would be wrong for an embedding's rows."""


@dataclass(frozen=True, kw_only=True)
class AdamConfig:
    """Adam's constants. The betas are the paper's (Table 3); it does not give an epsilon."""

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        require(self, ("beta1", "beta2"), lambda beta: 0 <= beta < 1, "at least 0 and below 1")
        require(self, ("epsilon",), finite_positive, "positive and finite")


def tiles(
    rows_Np: torch.Tensor, *, fused: bool, multiple: int = 1, eager: int = CACHE_ELEMENTS
) -> Iterator[slice]:
    """Slices of the columns; each but the last is a multiple of `multiple` wide.

    Args:
        fused: one kernel does all the work on a tile, so that nothing between expressions must fit into the cache.
        eager: the most elements of a tile on a CPU where no one kernel does.
    """
    device = rows_Np.device.type
    if device not in FUSED_ELEMENTS:
        raise UserError(f"the bank is on {device}; it can lie on {' or '.join(FUSED_ELEMENTS)}.")
    most = FUSED_ELEMENTS[device] if fused or device != "cpu" else eager
    width = max(most // max(len(rows_Np), 1) // multiple, 1) * multiple
    for start in range(0, rows_Np.shape[1], width):
        yield slice(start, min(start + width, rows_Np.shape[1]))


def hyperparameters(
    config: AdamConfig, step: int, learning_rate: float, device: torch.device
) -> torch.Tensor:
    """1 - beta1, 1 - beta2, the rate with the first moment's correction, the root of the second's, epsilon.

    They are a tensor, float32 [5], so that a new rate needs no new compilation. `step` counts from 0.
    """
    correction1, correction2 = 1 - config.beta1 ** (step + 1), 1 - config.beta2 ** (step + 1)
    return torch.tensor(
        [1 - config.beta1, 1 - config.beta2, learning_rate / correction1, correction2**-0.5, config.epsilon],
        device=device,
    )


def combine_tile(
    shared_t: torch.Tensor, coefficients_WN: torch.Tensor, high_Nt: torch.Tensor, out_Wt: torch.Tensor
) -> None:
    """Write ``shared + coefficients @ experts`` of one tile to `out_Wt`."""
    if not torch.compiler.is_compiling():
        out_Wt.copy_(shared_t + coefficients_WN @ high_Nt.float())
        return
    for number in range(len(coefficients_WN)):  # the compiler fuses a sum, and not a product of matrices
        out_Wt[number] = shared_t + (coefficients_WN[number][:, None] * high_Nt.float()).sum(0)


def dots_tile(grads_Wt: torch.Tensor, high_Nt: torch.Tensor) -> torch.Tensor:
    """A tile's part of the gradient of the coefficients, [W, N]."""
    if not torch.compiler.is_compiling():
        return grads_Wt @ high_Nt.float().T
    return torch.stack([(gradient_t * high_Nt.float()).sum(1) for gradient_t in grads_Wt])


def update_tile(
    high, low, first, first_scale, second, second_rows, second_columns, coefficients_WN, grads_Wt, numbers, keys_N,
    columns_t,
) -> None:  # fmt: skip
    """Update one tile in place. What a variant does not have is None; without `low` it is exact Adam in float32."""
    share1, share2, rate, correction, epsilon = numbers.unbind()
    gradient = outer(coefficients_WN, grads_Wt)
    bits: Any = None if low is None else rounding.random_bits(keys_N, columns_t)
    moment = first.float() if first_scale is None else rounding.from_int8(first, first_scale)
    moment = moment + share1 * (gradient - moment)
    if second is None:
        root = torch.sqrt(_from_factors(second_rows, second_columns))
    else:
        square = second.float()
        square = square + share2 * (gradient * gradient - square)
        root = torch.sqrt(square)
        second.copy_(square if low is None else rounding.to_bfloat16(square, (bits >> 16) & rounding.HALF))
    change = rate * moment / (root * correction + epsilon)
    if low is None:
        high.sub_(change)
        first.copy_(moment)
        return
    new_high, new_low = rounding.split(rounding.joined(high, low) - change)
    high.copy_(new_high)
    low.copy_(new_low)
    if first_scale is None:
        first.copy_(rounding.to_bfloat16(moment, bits & rounding.HALF))
    else:
        numbers_Nt, scale = rounding.to_int8(moment, bits & rounding.HALF)
        first.copy_(numbers_Nt)
        first_scale.copy_(scale)


def outer(coefficients_WN: torch.Tensor, grads_Wt: torch.Tensor) -> torch.Tensor:
    """``coefficientsᵀ grads`` [N, t] as a pointwise expression, which the compiler keeps in registers."""
    total = coefficients_WN[0][:, None] * grads_Wt[0]
    for number in range(1, len(grads_Wt)):
        total = total + coefficients_WN[number][:, None] * grads_Wt[number]
    return total


def _from_factors(rows_Nb: torch.Tensor, columns_t: torch.Tensor) -> torch.Tensor:
    """Second moments, float32 [N, t]: in each block, row sums times column sums over their common total."""
    blocks_bF = columns_t.view(-1, FACTORED)
    total_b = blocks_bF.sum(1).clamp(min=1.2e-38)
    return ((rows_Nb / total_b)[..., None] * blocks_bF).view(len(rows_Nb), -1)
