"""Linear layers with several LoRAs, of which each token takes its own: PHATGOOSE (Muqeeth, Liu, Liu and Raffel 2024,
arXiv 2402.05859, section 3).

While a gate is trained, an expert's LoRA reads ``u sigmoid(v.u)`` instead of u. Afterwards the sigmoid is not used: the
gates v of all experts are the rows of a router, and a token u scores each by ``LayerNorm(u) . LayerNorm(v) / sqrt(I)``,
which is sqrt(I) times the cosine of the centred vectors. (A public port divides the cosine itself by sqrt(I): all
experts then weigh nearly the same.)

Legend: E experts, I inputs and O outputs of a linear layer, r the rank of a LoRA, u a token's input.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

EPSILON = 1e-5
"""LayerNorm's. Its root is 3e-3: a gate whose standard deviation is not far above that scores less than it should."""


class TokenGate(nn.Module):
    """One gate vector, zero at first, so that half of each token passes."""

    def __init__(self, inputs: int):
        super().__init__()
        self.gate_I = nn.Parameter(torch.zeros(inputs))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens * (tokens @ self.gate_I).sigmoid().unsqueeze(-1)


def scores(tokens: torch.Tensor, gates_EI: torch.Tensor) -> torch.Tensor:
    """Score of each expert [..., E] for tokens [..., I], at most sqrt(I) in size."""
    size = gates_EI.shape[1:]
    normed_EI = F.layer_norm(gates_EI, size, eps=EPSILON)
    return F.layer_norm(tokens, size, eps=EPSILON) @ normed_EI.T * size[0] ** -0.5


def top_weights(scores: torch.Tensor, top: int) -> torch.Tensor:
    """Softmax over the `top` highest scores, and 0 for the other experts [..., E]."""
    highest, which = scores.float().topk(min(top, scores.shape[-1]), dim=-1)
    return torch.zeros_like(scores, dtype=torch.float32).scatter(-1, which, highest.softmax(-1))


def kept_of_scores(gates_EI: torch.Tensor) -> torch.Tensor:
    """The part of its scores that LayerNorm's epsilon leaves each gate [E]: 1 for a large gate, 0 for one of zeros."""
    variance_E = gates_EI.var(1, correction=0)
    return (variance_E / (variance_E + EPSILON)).sqrt()


class RoutedLinear(nn.Module):
    """A linear layer. Each token's best experts add ``weight scale B A u`` to its output.

    All experts' A are applied to each token, and what the token did not choose is multiplied by 0: for thin factors
    that is one product of matrices, and less work than gathering.

    Args:
        down_ErI, up_EOr: the factors A and B of each expert.
        gates_EI: the gates of each expert.
        scale: factor of all LoRAs.
        top: number of experts that a token takes.
    """

    def __init__(
        self,
        linear: nn.Module,
        *,
        down_ErI: torch.Tensor,
        up_EOr: torch.Tensor,
        gates_EI: torch.Tensor,
        scale: float,
        top: int = 2,
    ):
        super().__init__()
        self.linear, self.scale, self.top = linear, scale, top
        for name, tensor in {"down_ErI": down_ErI, "up_EOr": up_EOr, "gates_EI": gates_EI}.items():
            self.register_buffer(name, tensor.detach().clone())

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        weights = top_weights(scores(tokens, self.gates_EI), self.top)  # [..., E]
        inner = tokens @ self.down_ErI.flatten(0, 1).T  # [..., E r]
        weighted = inner.unflatten(-1, self.down_ErI.shape[:2]) * (self.scale * weights.unsqueeze(-1))
        return self.linear(tokens) + weighted.flatten(-2) @ self.up_EOr.transpose(1, 2).flatten(0, 1)
