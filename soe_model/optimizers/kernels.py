"""The update of a tile of experts as one Triton kernel, which reads and writes each number once.

One program updates 1024 columns of one expert. It does what `tile.update_tile` does, with the same random bits. Without
a GPU the tests run it in Triton's interpreter.

Legend: W mixtures, N experts, t columns of the tile, BLOCK columns of a program.
"""

from __future__ import annotations

import triton  # deptry: ignore[DEP004]
import triton.language as tl  # deptry: ignore[DEP004]

COLUMNS = 1024
_SCALED = 256


@triton.jit
def _mixed(bits):
    bits = (bits ^ (bits >> 16)) * tl.full((), 0x7FEB352D, tl.uint32)
    bits = (bits ^ (bits >> 16)) * tl.full((), 0x2C1B3C6D, tl.uint32)
    return bits ^ (bits >> 15)


@triton.jit
def _to_bfloat16(values, bits):
    whole = values.to(tl.int32, bitcast=True) + bits.to(tl.int32)
    return (whole >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)


@triton.jit
def _update(
    high_ptr, low_ptr, first_ptr, scale_ptr, second_ptr, rows_ptr, columns_ptr,
    coefficients_ptr, grads_ptr, numbers_ptr, keys_ptr, places_ptr,
    stride, grads_stride, num_experts,
    W: tl.constexpr, FLOAT: tl.constexpr, INT8: tl.constexpr, FACTORED: tl.constexpr, BLOCK: tl.constexpr,
    SCALED: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0).to(tl.int64)
    expert = tl.program_id(1).to(tl.int64)
    columns = block * BLOCK + tl.arange(0, BLOCK)
    here = expert * stride + columns
    share1, share2 = tl.load(numbers_ptr), tl.load(numbers_ptr + 1)
    rate, correction, epsilon = tl.load(numbers_ptr + 2), tl.load(numbers_ptr + 3), tl.load(numbers_ptr + 4)

    gradient = tl.zeros((BLOCK,), tl.float32)
    grads = grads_ptr + columns
    for w in tl.static_range(W):
        coefficient = tl.load(coefficients_ptr + w * num_experts + expert)
        gradient += coefficient * tl.load(grads)
        grads += grads_stride  # one row at a time: w * grads_stride may be too large for 32 bits

    if not FLOAT:
        place = tl.load(places_ptr + columns)
        of_column = _mixed(_mixed((place >> 32).to(tl.uint32)) ^ place.to(tl.uint32))
        bits = _mixed(tl.load(keys_ptr + expert).to(tl.uint32) ^ of_column)

    first = tl.load(first_ptr + here).to(tl.float32)
    if INT8:
        scales = expert * (stride // SCALED) + block * (BLOCK // SCALED) + tl.arange(0, BLOCK // SCALED)
        old = tl.reshape(first, (BLOCK // SCALED, SCALED)) * tl.load(scale_ptr + scales)[:, None]
        first = tl.reshape(old, (BLOCK,))
    first += share1 * (gradient - first)
    if FACTORED:
        of_columns = tl.load(columns_ptr + columns)
        # Smaller numbers are not normal in float32, and Triton 3.7 takes them for float64.
        total = tl.maximum(tl.sum(of_columns), 1.2e-38)
        square = tl.load(rows_ptr + expert * (stride // BLOCK) + block) / total * of_columns
    else:
        square = tl.load(second_ptr + here).to(tl.float32)
        square += share2 * (gradient * gradient - square)
        if FLOAT:
            tl.store(second_ptr + here, square)
        else:
            tl.store(second_ptr + here, _to_bfloat16(square, bits >> 16))
    change = rate * first / (tl.sqrt(square) * correction + epsilon)

    if FLOAT:
        tl.store(high_ptr + here, tl.load(high_ptr + here) - change)
    else:
        upper = tl.load(high_ptr + here).to(tl.int16, bitcast=True).to(tl.int32) << 16
        weights = (upper + tl.load(low_ptr + here).to(tl.int32)).to(tl.float32, bitcast=True) - change
        whole = weights.to(tl.int32, bitcast=True)
        upper = (whole + 0x8000) >> 16
        tl.store(high_ptr + here, upper.to(tl.int16).to(tl.bfloat16, bitcast=True))
        tl.store(low_ptr + here, (whole - (upper << 16)).to(tl.int16))

    if FLOAT:
        tl.store(first_ptr + here, first)
    elif INT8:
        blocks = tl.reshape(first, (BLOCK // SCALED, SCALED))
        scale = tl.max(tl.abs(blocks), axis=1) / 127
        chance = tl.reshape((bits & 0xFFFF).to(tl.float32) / 65536, (BLOCK // SCALED, SCALED))
        rounded = tl.floor(blocks / tl.maximum(scale, 1.2e-38)[:, None] + chance)
        rounded = tl.minimum(tl.maximum(rounded, -127.0), 127.0)
        tl.store(first_ptr + here, tl.reshape(rounded, (BLOCK,)).to(tl.int8))
        tl.store(scale_ptr + scales, scale)
    else:
        tl.store(first_ptr + here, _to_bfloat16(first, bits & 0xFFFF))


def update_tile(
    high, low, first, first_scale, second, second_rows, second_columns, coefficients_WN, grads_Wt, numbers, keys_N,
    columns_t,
) -> None:  # fmt: skip
    """The same as :func:`soe_model.optimizers.tile.update_tile`: with a float32 `high` and no `low` it is exact Adam.

    The tensors are views of contiguous ones whose numbers of columns are multiples of 1024.
    """
    num_experts, width = high.shape
    nothing = numbers
    _update[(width // COLUMNS, num_experts)](
        high,
        nothing if low is None else low,
        first,
        nothing if first_scale is None else first_scale,
        nothing if second is None else second,
        nothing if second_rows is None else second_rows,
        nothing if second_columns is None else second_columns,
        coefficients_WN.contiguous(),
        grads_Wt,
        numbers,
        nothing if keys_N is None else keys_N,
        nothing if columns_t is None else columns_t,
        high.stride(0),
        grads_Wt.stride(0),
        num_experts,
        W=len(coefficients_WN),
        FLOAT=low is None,
        INT8=first_scale is not None,
        FACTORED=second is None,
        BLOCK=COLUMNS,
        SCALED=_SCALED,
    )
