"""The router φ: a two-layer MLP from domain weights to expert coefficients (section 2.3).

Legend: W mixtures, K domains, H hidden units, N experts, D embedding size.
"""

from __future__ import annotations

import warnings

import torch
from torch import nn

from storage_schema.errors import UserError

SUM_TOLERANCE = 1e-4
"""How far the sum of the weights may be from 1; rounding 4096 weights to float32 moves it by less."""


class Router(nn.Module):
    """Two-layer MLP from domain weights [W, K] to coefficients [W, N].

    Args:
        input_scale: size of the first layer's weights. A mixture is a convex combination of the layer's
            columns, so with PyTorch's default (1/sqrt(K)) all mixtures would look the same.
        output_scale: standard deviation of the coefficients at the start, up to the gain of the activation.
        centroids_KD: the domains' centroids. The first layer starts as a random projection of them, so that
            neighbouring domains start with neighbouring coefficients. Without them it starts at random.
    """

    def __init__(
        self,
        num_domains: int,
        num_experts: int,
        *,
        hidden: int,
        input_scale: float,
        output_scale: float,
        centroids_KD: torch.Tensor | None = None,
    ):
        super().__init__()
        self.hidden = nn.Linear(num_domains, hidden)
        with (
            warnings.catch_warnings()
        ):  # a generic twin has no experts: torch says that it initializes nothing
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            self.output = nn.Linear(hidden, num_experts)
        nn.init.normal_(self.hidden.weight, std=input_scale)
        if centroids_KD is not None:
            self.hidden.weight.data.copy_(input_scale * _projected(centroids_KD, hidden).T)
        nn.init.zeros_(self.hidden.bias)
        nn.init.normal_(self.output.weight, std=output_scale / hidden**0.5)
        nn.init.zeros_(self.output.bias)

    def forward(self, domain_weights_WK: torch.Tensor) -> torch.Tensor:
        return self.output(torch.nn.functional.gelu(self.hidden(domain_weights_WK)))


class GroupMasses(nn.Module):
    """A router that learns nothing: the coefficient of an expert is the weight of its domains together.

    Args:
        members_KN: 1 where a domain belongs to an expert, and else 0.
    """

    members_KN: torch.Tensor

    def __init__(self, members_KN: torch.Tensor):
        super().__init__()
        self.register_buffer("members_KN", members_KN.float())

    def forward(self, domain_weights_WK: torch.Tensor) -> torch.Tensor:
        return domain_weights_WK @ self.members_KN


def check_domain_weights(domain_weights_WK: torch.Tensor, num_domains: int) -> None:
    """Raise ValueError, naming the value, unless each row [K] is a distribution over `num_domains` domains.

    The router has learned from such weights only; for others its coefficients would mean nothing.
    """
    if domain_weights_WK.ndim != 2 or domain_weights_WK.shape[1] != num_domains:
        raise UserError(
            f"domain weights have shape {list(domain_weights_WK.shape)}; give one for each of the soup's {num_domains} "
            "domains, as estimate_domain_weights does."
        )
    wrong_WK = ~(domain_weights_WK >= 0) | domain_weights_WK.isinf()  # NaN too
    if wrong_WK.any():
        row, domain = wrong_WK.nonzero()[0].tolist()
        value = domain_weights_WK[row, domain].item()
        raise UserError(
            f"domain weight {domain} is {value}; weights must be finite and at least 0. Other mixtures of the experts "
            "are coefficients, which SoupOfExperts.instances takes."
        )
    off_W = domain_weights_WK.double().sum(1) - 1
    if len(off_W) and off_W.abs().max() > SUM_TOLERANCE:
        furthest = off_W[off_W.abs().argmax()].item() + 1
        raise UserError(
            f"domain weights sum to {furthest:.9g}; they must sum to 1 within {SUM_TOLERANCE}. "
            "Divide them by their sum."
        )


def _projected(centroids_KD: torch.Tensor, hidden: int) -> torch.Tensor:
    """Random projections [K, H] of the directions from the centroids' mean to each centroid.

    The centroid of an empty domain is NaN; its projection is zero.
    """
    empty = centroids_KD.isnan().any(1, keepdim=True)
    mean_D = centroids_KD[~empty[:, 0]].mean(0)
    directions_KD = torch.nn.functional.normalize(torch.where(empty, 0.0, centroids_KD - mean_D), dim=1)
    return directions_KD @ torch.randn(centroids_KD.shape[1], hidden)
