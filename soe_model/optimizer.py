"""Exact Adam (Algorithm 2, Table 3), without a gradient of the bank's size.

The gradient of the experts is ``coefficientsᵀ G``; it is formed for one tile of columns at a time, small
enough for the cache, and consumed there. Arithmetic is PyTorch's own fused Adam.

Legend: W mixtures, N experts, p parameters on this rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.optim.adam import adam

TILE = 16_384
"""Columns updated at once: a tile's gradient, moments and weights of 16 experts take 4 MB."""


@dataclass(frozen=True, kw_only=True)
class AdamConfig:
    """Adam's constants; the paper's beta 0.9 and 0.999 (Table 3)."""

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8


class Adam:
    """Adam's moments of one group of parameters, [rows, columns] or [columns].

    Args:
        parameters: updated in place, float32 and contiguous.
    """

    def __init__(self, parameters: torch.Tensor, config: AdamConfig):
        self.parameters = parameters
        self.config = config
        self.first_moment = torch.zeros_like(parameters)
        self.second_moment = torch.zeros_like(parameters)

    def update(self, gradient: torch.Tensor, *, step: int, learning_rate: float) -> None:
        """One update with a gradient of the parameters' own shape. `step` counts from 0."""
        self._apply([(self.parameters, gradient, self.first_moment, self.second_moment)], step, learning_rate)

    def update_outer(
        self, coefficients_WN: torch.Tensor, grads_Wp: torch.Tensor, *, step: int, learning_rate: float
    ) -> None:
        """One update of [N, p] parameters with the gradient ``coefficientsᵀ grads``, tile by tile."""
        for start in range(0, self.parameters.shape[1], TILE):
            columns = slice(start, start + TILE)
            gradient = coefficients_WN.T @ grads_Wp[:, columns]
            rows = [
                (
                    self.parameters[j, columns],
                    gradient[j],
                    self.first_moment[j, columns],
                    self.second_moment[j, columns],
                )
                for j in range(len(self.parameters))
            ]
            self._apply(rows, step, learning_rate)

    def _apply(self, rows: list[tuple[torch.Tensor, ...]], step: int, learning_rate: float) -> None:
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
            beta1=self.config.beta1,
            beta2=self.config.beta2,
            lr=learning_rate,
            weight_decay=0.0,
            eps=self.config.epsilon,
            maximize=False,
        )
