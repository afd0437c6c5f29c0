"""Numbers in fewer bits without a drift: stochastic rounding, weights as 16 + 16 bits, blocks of 8 bits.

The random bits are a hash of (seed, step, row, global column), so they are the same on any number of ranks, after a
resume, and in the Triton kernel. Rounding to nearest would freeze a second moment, because 1 - beta2 is below half a
unit of bfloat16, and would lose every small update of a weight.

Legend: N rows (experts), t columns, BLOCK columns that share a scale.
"""

from __future__ import annotations

import torch

_MULTIPLIERS = 0x7FEB352D, 0x2C1B3C6D
HALF = 0xFFFF
_MASK = 0xFFFFFFFF
BLOCK = 256
"""Columns of a row that share one scale."""


def mixed(bits: torch.Tensor) -> torch.Tensor:
    """A hash of int32: xor-shift and multiply, twice; the products wrap round."""
    for multiplier in _MULTIPLIERS:
        bits = (bits ^ ((bits >> 16) & HALF)) * multiplier
    return bits ^ ((bits >> 15) & 0x1FFFF)


def _low32(values: torch.Tensor) -> torch.Tensor:
    """The lower 32 bits of int64, as int32."""
    values = values & _MASK
    return torch.where(values > _MASK >> 1, values - (1 << 32), values).to(torch.int32)


def row_keys(num_rows: int, seed: int, step: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """A key for each row of one step, int32 [N]."""
    rows = torch.arange(num_rows, dtype=torch.int32, device=device)
    of_step = mixed(_low32(torch.tensor([seed & _MASK, seed >> 32, step], device=device)))
    for number in range(3):
        rows = mixed(rows ^ of_step[number])
    return rows


def random_bits(keys_N: torch.Tensor, columns_t: torch.Tensor) -> torch.Tensor:
    """32 random bits for each element, int32 [N, t]; `columns_t` are global columns, int64 below 2^63."""
    of_column_t = mixed(mixed(_low32(columns_t >> 32)) ^ _low32(columns_t))
    return mixed(keys_N[:, None] ^ of_column_t)


def to_bfloat16(values: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """Round float32 to one of its two bfloat16 neighbours; `bits` are 16 random ones, int32 below 2^16."""
    return ((values.view(torch.int32) + bits) >> 16).to(torch.int16).view(torch.bfloat16)


def split(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Split float32 into the nearest bfloat16 and an int16 of what is missing; nothing is lost."""
    whole = values.view(torch.int32)
    high = (whole + 0x8000) >> 16
    low = whole - (high << 16)
    return high.to(torch.int16).view(torch.bfloat16), low.to(torch.int16)


def joined(high: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
    """Put together the float32 that :func:`split` took apart, bit for bit."""
    return ((high.view(torch.int16).to(torch.int32) << 16) + low.to(torch.int32)).view(torch.float32)


def to_int8(values_Nt: torch.Tensor, bits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round float32 [N, t] to int8 [N, t] and a scale for each block, float32 [N, t / BLOCK], by 16 random bits."""
    blocks = values_Nt.view(len(values_Nt), -1, BLOCK)
    scale = blocks.abs().amax(2) / 127
    whole = blocks / scale.clamp(min=1.2e-38)[..., None]
    chance = bits.view(blocks.shape).to(torch.float32) / 65536
    return torch.floor(whole + chance).clamp(-127, 127).to(torch.int8).view(values_Nt.shape), scale


def from_int8(numbers_Nt: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The float32 [N, t] that :func:`to_int8` rounded."""
    blocks = numbers_Nt.view(len(numbers_Nt), -1, BLOCK).to(torch.float32)
    return (blocks * scale[..., None]).view(numbers_Nt.shape)


def normal(keys_N: torch.Tensor, columns_t: torch.Tensor) -> torch.Tensor:
    """Standard normal numbers from the same bits (Box-Muller), float32 [N, t]."""
    first, second = random_bits(keys_N, columns_t), random_bits(mixed(keys_N ^ 1), columns_t)
    radius = torch.sqrt(-2 * torch.log((first.to(torch.float64) + 2.0**31 + 0.5) / 2**32))
    return (radius * torch.cos(second.to(torch.float64) * (2 * torch.pi / 2**32))).to(torch.float32)
