"""Optimizers of fewer bytes: exact weights as 16 + 16 bits, moments that are rounded or shared.

A weight is a float32, bit for bit, held as a bfloat16 and a remainder. Combining and the gradient of the coefficients
read the bfloat16 only. These optimizers differ from Adam in their moments:

    adam-bf16-moments   both moments are bfloat16, rounded stochastically
    factored            the second moment is the outer product of its row and column sums in each block of 1024 columns
                        (Adafactor, Shazeer and Stern 2018, has one for a whole matrix)
    factored-int8       factored, and the first moment has 8 bits with one scale for 256 columns

Legend: W mixtures, N experts, p parameters on this rank, t columns of a tile, F = FACTORED columns of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from soe_model.optimizers import rounding
from soe_model.optimizers.compiling import compiled, updating
from soe_model.optimizers.tile import (
    FACTORED,
    AdamConfig,
    combine_tile,
    dots_tile,
    hyperparameters,
    tiles,
    update_tile,
)
from storage_schema.errors import UserError

GRAM_COLUMNS = 1 << 16
"""Columns taken at once where float32 tensors of their size are made; a tile of a GPU would be half a gigabyte."""


@dataclass(frozen=True, kw_only=True)
class Moments:
    """How an optimizer holds its moments."""

    int8_first: bool = False
    factored_second: bool = False

    @property
    def state_bytes(self) -> float:
        """Bytes per element: weight and moments, without the numbers that a whole block shares."""
        first = 1 + 4 / rounding.BLOCK if self.int8_first else 2
        second = 4 / FACTORED if self.factored_second else 2
        return 4 + first + second

    @property
    def moved_bytes(self) -> float:
        """Bytes read and written per element and step; combining reads the upper half of the weight once more."""
        return 2 * self.state_bytes + 2


class CompactExperts:
    """Experts as bfloat16 and a remainder, with the moments that `moments` describes; see AdamExperts.

    Raises ValueError unless the number of columns and `first_column` are multiples of 1024.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        moments: Moments,
        config: AdamConfig,
        seed: int,
        first_column: int = 0,
        device: torch.device | str = "cpu",
        fill: Callable[[torch.Tensor, int], None] | None = None,
    ):
        num_experts, width = shape
        if width % FACTORED or first_column % FACTORED:
            raise UserError(f"{width} columns from {first_column} on: both must be multiples of {FACTORED}.")
        self.moments, self.config, self.seed, self.first_column = moments, config, seed, first_column
        self.high_Np = torch.zeros(shape, dtype=torch.bfloat16, device=device)
        self.low_Np = torch.zeros(shape, dtype=torch.int16, device=device)
        if moments.int8_first:
            self.first = torch.zeros(shape, dtype=torch.int8, device=device)
            self.first_scale = torch.zeros(num_experts, width // rounding.BLOCK, device=device)
        else:
            self.first, self.first_scale = torch.zeros(shape, dtype=torch.bfloat16, device=device), None
        self.second = self.second_rows = self.second_columns = None
        if moments.factored_second:
            self.second_rows = torch.zeros(num_experts, width // FACTORED, device=device)
            self.second_columns = torch.zeros(width, device=device)
        else:
            self.second = torch.zeros(shape, dtype=torch.bfloat16, device=device)
        self._combine = compiled(combine_tile, self.high_Np)
        self._dots = compiled(dots_tile, self.high_Np)
        self._update = updating(self.high_Np)
        if fill:
            for columns in self._tiles():
                values = torch.zeros(num_experts, columns.stop - columns.start, device=device)
                fill(values, first_column + columns.start)
                self.high_Np[:, columns], self.low_Np[:, columns] = rounding.split(values)

    def _tiles(self) -> Iterator[slice]:
        return tiles(self.high_Np, fused=self._update is not update_tile, multiple=FACTORED)

    def row(self, number: int) -> torch.Tensor:
        """The exact weights of one expert, float32 [p]."""
        return rounding.joined(self.high_Np[number], self.low_Np[number])

    def combine(self, shared_p: torch.Tensor, coefficients_WN: torch.Tensor, out_Wp: torch.Tensor) -> None:
        """Write ``shared + coefficients @ experts`` to `out_Wp`, with the experts rounded to bfloat16."""
        for columns in self._tiles():
            self._combine(shared_p[columns], coefficients_WN, self.high_Np[:, columns], out_Wp[:, columns])

    def coefficient_gradients(self, grads_Wp: torch.Tensor) -> torch.Tensor:
        """Gradient of the coefficients, ``G expertsᵀ`` [W, N], with the same rounded experts."""
        total = grads_Wp.new_zeros(len(grads_Wp), len(self.high_Np))
        for columns in self._tiles():
            total += self._dots(grads_Wp[:, columns], self.high_Np[:, columns])
        return total

    def gram(self) -> torch.Tensor:
        """Inner products of the same rounded experts over these columns, [N, N]."""
        total = torch.zeros(len(self.high_Np), len(self.high_Np), device=self.high_Np.device)
        for part in self.high_Np.split(GRAM_COLUMNS, dim=1):
            part_Nt = part.float()
            total += part_Nt @ part_Nt.T
        return total

    def update(
        self, coefficients_WN: torch.Tensor, grads_Wp: torch.Tensor, *, step: int, learning_rate: float
    ) -> None:
        """One update with the gradient ``coefficientsᵀ grads``."""
        config, device = self.config, grads_Wp.device
        numbers = hyperparameters(config, step, learning_rate, device)
        keys_N = rounding.row_keys(len(self.high_Np), self.seed, step + 1, device)  # 0 is the start's
        if self.moments.factored_second:
            self._factors(coefficients_WN, grads_Wp, 1 - config.beta2)
        for columns in self._tiles():
            start = self.first_column + columns.start
            columns_t = torch.arange(start, start + columns.stop - columns.start, device=device)
            state = [tensor if tensor is None else self._part(tensor, columns) for tensor in self._states()]
            self._update(*state, coefficients_WN, grads_Wp[:, columns], numbers, keys_N, columns_t)

    def _states(self) -> tuple[torch.Tensor | None, ...]:
        return (
            self.high_Np, self.low_Np, self.first, self.first_scale, self.second, self.second_rows, self.second_columns,
        )  # fmt: skip

    def _part(self, tensor: torch.Tensor, columns: slice) -> torch.Tensor:
        """These columns of a tensor whose last axis may count blocks of columns."""
        width = self.high_Np.shape[1] // tensor.shape[-1]
        return tensor[..., columns.start // width : columns.stop // width]

    def _factors(self, coefficients_WN: torch.Tensor, grads_Wp: torch.Tensor, share: float) -> None:
        """Update the running means of the row and column sums of the squared gradient, in closed form.

        With a the coefficients of expert j and g the gradients in column k: the square is (a·g)², its sum over
        a block's columns ``aᵀ (Σ g gᵀ) a``, and over the experts ``gᵀ (Σ a aᵀ) g``.
        """
        blocks = grads_Wp.view(len(grads_Wp), -1, FACTORED)
        gram_bWW = torch.einsum("wbf,vbf->bwv", blocks, blocks)
        rows = torch.einsum("wn,bwv,vn->nb", coefficients_WN, gram_bWW, coefficients_WN)
        gram_WW = coefficients_WN @ coefficients_WN.T
        parts = grads_Wp.split(GRAM_COLUMNS, dim=1)  # each makes two tensors of its own size
        columns = torch.cat([((gram_WW @ part_Wt) * part_Wt).sum(0) for part_Wt in parts])
        assert self.second_rows is not None and self.second_columns is not None
        self.second_rows.lerp_(rows.clamp_(min=0), share)
        self.second_columns.lerp_(columns.clamp_(min=0), share)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a checkpoint keeps, by name; the last axis counts columns or whole blocks of them."""
        names = "high", "low", "first_moment", "first_scale", "second_moment", "second_rows", "second_columns"
        return {name: t for name, t in zip(names, self._states(), strict=True) if t is not None}
