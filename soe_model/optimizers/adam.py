"""Exact Adam (Algorithm 2, Table 3) without a gradient as large as the bank.

The gradient of the experts is ``coefficientsᵀ G``. It is computed for one tile of columns at a time, used and
forgotten. The compiled expressions of tile.py update large banks, PyTorch's own fused Adam the others.

Legend: W mixtures, N experts, p parameters on this rank, t columns of a tile.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.optim.adam import adam

from soe_model.optimizers.compiling import updating
from soe_model.optimizers.tile import GRADIENT_ELEMENTS, AdamConfig, hyperparameters, tiles, update_tile

COLUMNS_OF_ROW = 1 << 19
"""Columns that a CPU combines at once: few calls, and the sum stays in the cache."""


class Adam:
    """Adam of one tensor of float32 parameters, which it updates in place. `step` counts from 0."""

    def __init__(self, parameters: torch.Tensor, config: AdamConfig):
        self.parameters, self.config = parameters, config
        self.first_moment = torch.zeros_like(parameters)
        self.second_moment = torch.zeros_like(parameters)

    def update(self, gradient: torch.Tensor, *, step: int, learning_rate: float) -> None:
        """One update; the gradient has the shape of the parameters."""
        apply(
            [(self.parameters, gradient, self.first_moment, self.second_moment)],
            self.config,
            step,
            learning_rate,
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"first_moment": self.first_moment, "second_moment": self.second_moment}


class AdamExperts:
    """Experts in float32 with exact Adam.

    Args:
        shape: N and p.
        first_column: number of this rank's first column.
        fill: writes the initial values of a tile, given as float32 [N, t] and the number of its first column; None:
            zeros.
    """

    state_bytes = 12.0
    """Bytes per element: weight and moments."""
    moved_bytes = 28.0
    """Bytes read and written per element and step: weight and moments twice, and the weight once more to combine."""

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        config: AdamConfig,
        seed: int,
        first_column: int = 0,
        device: torch.device | str = "cpu",
        fill: Callable[[torch.Tensor, int], None] | None = None,
    ):
        self.config = config
        self.weights_Np = torch.zeros(shape, device=device)
        self.first_moment = torch.zeros(shape, device=device)
        self.second_moment = torch.zeros(shape, device=device)
        self._update = updating(self.weights_Np)
        if fill:
            for columns in tiles(self.weights_Np, fused=False):
                fill(self.weights_Np[:, columns], first_column + columns.start)

    def row(self, number: int) -> torch.Tensor:
        """The weights of one expert, float32 [p]."""
        return self.weights_Np[number]

    def combine(self, shared_p: torch.Tensor, coefficients_WN: torch.Tensor, out_Wp: torch.Tensor) -> None:
        """Write ``shared + coefficients @ experts`` to `out_Wp`."""
        if self.weights_Np.device.type != "cpu" or len(coefficients_WN) > 1:
            torch.addmm(shared_p, coefficients_WN, self.weights_Np, out=out_Wp)
            return
        # Row by row: a core reads one long stream faster than N streams at once, as a product of matrices does.
        for start in range(0, len(shared_p), COLUMNS_OF_ROW):
            columns = slice(start, start + COLUMNS_OF_ROW)
            part_t = out_Wp[0, columns].copy_(shared_p[columns])
            for weights_t, coefficient in zip(
                self.weights_Np[:, columns], coefficients_WN[0].tolist(), strict=True
            ):
                part_t.add_(weights_t, alpha=coefficient)

    def coefficient_gradients(self, grads_Wp: torch.Tensor) -> torch.Tensor:
        """Gradient of the coefficients, ``G expertsᵀ`` [W, N]."""
        return grads_Wp @ self.weights_Np.T

    def gram(self) -> torch.Tensor:
        """Inner products of the experts over these columns, [N, N]."""
        return self.weights_Np @ self.weights_Np.T

    def update(
        self, coefficients_WN: torch.Tensor, grads_Wp: torch.Tensor, *, step: int, learning_rate: float
    ) -> None:
        """One update with the gradient ``coefficientsᵀ grads``."""
        if self._update is not update_tile:
            self.update_by(self._update, coefficients_WN, grads_Wp, step=step, learning_rate=learning_rate)
            return
        for columns in tiles(self.weights_Np, fused=False, eager=GRADIENT_ELEMENTS):
            gradient = coefficients_WN.T @ grads_Wp[:, columns]
            rows = [
                (
                    self.weights_Np[j, columns],
                    gradient[j],
                    self.first_moment[j, columns],
                    self.second_moment[j, columns],
                )
                for j in range(len(gradient))
            ]
            apply(rows, self.config, step, learning_rate)

    def update_by(
        self,
        update: Callable[..., None],
        coefficients_WN: torch.Tensor,
        grads_Wp: torch.Tensor,
        *,
        step: int,
        learning_rate: float,
    ) -> None:
        """The same update by a compiled :func:`~soe_model.optimizers.tile.update_tile` or by a kernel."""
        numbers = hyperparameters(self.config, step, learning_rate, grads_Wp.device)
        for columns in tiles(self.weights_Np, fused=True, multiple=1024):
            weights, first, second = (t[:, columns] for t in self.tensors().values())
            of_gradient = coefficients_WN, grads_Wp[:, columns], numbers
            update(weights, None, first, None, second, None, None, *of_gradient, None, None)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a checkpoint keeps, by name: float32 [N, p] each."""
        return {
            "weights": self.weights_Np,
            "first_moment": self.first_moment,
            "second_moment": self.second_moment,
        }


def apply(rows: list[tuple[torch.Tensor, ...]], config: AdamConfig, step: int, learning_rate: float) -> None:
    """PyTorch's fused Adam on rows of (parameters, gradient, first moment, second moment)."""
    if not rows:
        return
    parameters, gradients, first, second = map(list, zip(*rows, strict=True))
    adam(
        parameters,
        gradients,
        first,
        second,
        [],
        [torch.tensor(float(step), device=parameters[0].device) for _ in parameters],
        fused=True,
        amsgrad=False,
        beta1=config.beta1,
        beta2=config.beta2,
        lr=learning_rate,
        weight_decay=0.0,
        eps=config.epsilon,
        maximize=False,
    )
