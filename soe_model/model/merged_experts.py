"""A bank of merged experts behind the MLP of a block: SMEAR (Muqeeth, Liu and Raffel 2023, arXiv 2306.03745, section
3), made causal.

A router reads the mean of a sequence and chooses how much of each expert to merge: one merged expert then runs over the
sequence's tokens. The mean over the whole sequence would show each token what comes after it. So a sequence is cut into
segments, as in Lory (Zhong et al. 2024, arXiv 2405.03133, section 3), and a segment is routed by the mean over all
tokens before it. Nothing comes before the first segment, so it is always routed by a mean of zeros.

Legend: B sequences, L tokens in a sequence, S segments, T tokens in a segment, D embedding size, N experts, C width of
an expert, n windows.
"""

from __future__ import annotations

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import nn

STD = 1e-2
"""Standard deviation of the experts' weights at the start, and the scale of the router's normalised columns, as in
SMEAR's code."""
FLOOR = 1e-6
"""Added to the probabilities that expert dropout leaves, so that dropping all of them leaves something to divide by."""

EXPERT_TENSORS = ("down_NDC", "down_bias_NC", "up_NCD", "up_bias_ND")
"""Names of a bank's parameters, each of all experts."""


class SegmentRouter(nn.Module):
    """From each segment's past to the shares of the experts: LayerNorm on input and columns, then a softmax."""

    def __init__(self, embedding_size: int, num_experts: int, *, segment_length: int, dropout: float):
        super().__init__()
        self.segment_length, self.dropout = segment_length, dropout
        self.norm = nn.LayerNorm(embedding_size)
        self.columns_ND = nn.Parameter(torch.randn(num_experts, embedding_size) * embedding_size**-0.5)
        self.column_norm = nn.LayerNorm(embedding_size)
        nn.init.constant_(self.column_norm.weight, STD)
        self.bias_N = nn.Parameter(torch.zeros(num_experts))

    def past(self, segments_BSTD: torch.Tensor) -> torch.Tensor:
        """Mean over all tokens before each segment [B, S, D]; zeros before the first one."""
        sums_BSD = segments_BSTD.sum(2).cumsum(1)[:, :-1]
        counts_S1 = (
            self.segment_length * torch.arange(1, segments_BSTD.shape[1], device=sums_BSD.device)[:, None]
        )
        return F.pad(sums_BSD / counts_S1, (0, 0, 1, 0))

    def forward(self, segments_BSTD: torch.Tensor) -> torch.Tensor:
        """Shares of the experts [B, S, N], which sum to 1. In training some experts are dropped (section 3)."""
        scores_BSN = self.norm(self.past(segments_BSTD)) @ self.column_norm(self.columns_ND).T + self.bias_N
        shares_BSN = scores_BSN.float().softmax(-1)
        if self.training and self.dropout:
            # Drawn on the CPU, whose generator the learner seeds for each step.
            kept_BSN = torch.rand(shares_BSN.shape) >= self.dropout
            shares_BSN = shares_BSN * kept_BSN.to(shares_BSN.device) + FLOOR
            shares_BSN = shares_BSN / shares_BSN.sum(-1, keepdim=True)
        return shares_BSN


class MergedExperts(nn.Module):
    """An MLP with experts that add to its output; each is an adapter of two layers, ``up silu(down x)``.

    SMEAR has a bank after the attention too, and normalises an adapter's output; this has one bank per block, and does
    not.

    Args:
        segment_length: T. The tokens of a last, shorter segment are routed like those of a whole one.
        dropout: share of the experts that a segment goes without in training.
    """

    def __init__(
        self,
        mlp: nn.Module,
        *,
        embedding_size: int,
        num_experts: int,
        width: int,
        segment_length: int,
        dropout: float,
    ):
        super().__init__()
        self.mlp = mlp
        self.down_NDC = nn.Parameter(torch.randn(num_experts, embedding_size, width) * STD)
        self.down_bias_NC = nn.Parameter(torch.zeros(num_experts, width))
        self.up_NCD = nn.Parameter(torch.randn(num_experts, width, embedding_size) * STD)
        self.up_bias_ND = nn.Parameter(torch.zeros(num_experts, embedding_size))
        self.router = SegmentRouter(
            embedding_size, num_experts, segment_length=segment_length, dropout=dropout
        )
        self.shares_BSN: torch.Tensor | None = None
        """What the router chose in the last forward pass."""

    def merged(self, shares: torch.Tensor) -> list[torch.Tensor]:
        """Shares [..., N] → weights and biases of the merged experts: [..., D, C], [..., C], [..., C, D], [..., D]."""
        experts = [getattr(self, name) for name in EXPERT_TENSORS]
        return [(shares @ each.flatten(1)).unflatten(-1, each.shape[1:]) for each in experts]

    def forward(self, hidden_BLD: torch.Tensor) -> torch.Tensor:
        output_BLD = self.mlp(hidden_BLD)
        length, segment = output_BLD.shape[1], self.router.segment_length
        padded = F.pad(output_BLD, (0, 0, 0, -length % segment))
        segments_BSTD = padded.unflatten(1, (-1, segment))
        shares_BSN = self.router(segments_BSTD)
        self.shares_BSN = shares_BSN.detach()
        added_BSTD = _adapter(segments_BSTD, *self.merged(shares_BSN))
        return output_BLD + added_BSTD.flatten(1, 2)[:, :length]


class FrozenExpert(nn.Module):
    """The same MLP with one merged expert, the same for all texts: part of a plain model without a router."""

    def __init__(self, experts: MergedExperts, shares_N: torch.Tensor):
        super().__init__()
        self.mlp = experts.mlp
        with torch.no_grad():
            names = ("down_DC", "down_bias_C", "up_CD", "up_bias_D")
            for name, tensor in zip(names, experts.merged(shares_N), strict=True):
                self.register_parameter(name, nn.Parameter(tensor))

    def forward(self, hidden_BLD: torch.Tensor) -> torch.Tensor:
        output_BLD = self.mlp(hidden_BLD)
        return output_BLD + _adapter(output_BLD, self.down_DC, self.down_bias_C, self.up_CD, self.up_bias_D)


def _adapter(
    tokens: torch.Tensor, down: torch.Tensor, down_bias: torch.Tensor, up: torch.Tensor, up_bias: torch.Tensor
) -> torch.Tensor:
    """One adapter for each set of tokens [..., T, D]."""
    inner = F.silu(tokens @ down + down_bias.unsqueeze(-2))
    return inner @ up + up_bias.unsqueeze(-2)


def entropy(banks: list[MergedExperts]) -> float:
    """Entropy of the last shares in nats, mean over banks, sequences and segments: ln N if all weigh the same."""
    found = [
        torch.special.entr(bank.shares_BSN).sum(-1).mean() for bank in banks if bank.shares_BSN is not None
    ]
    return torch.stack(found).mean().item() if found else 0.0


@torch.no_grad()
def frozen(module: nn.Module, windows_nL1: torch.Tensor) -> nn.Module:
    """A copy whose experts are merged by the routers' mean shares over the windows' segments; it has no router."""
    banks = banks_of(module)
    totals = [torch.zeros(len(bank.up_bias_ND), device=bank.up_bias_ND.device) for bank in banks]
    module.eval()
    for batch in windows_nL1.split(32):
        module(input_ids=batch[:, :-1].to(totals[0].device))
        for total_N, bank in zip(totals, banks, strict=True):
            assert bank.shares_BSN is not None
            total_N += bank.shares_BSN.mean(1).sum(0)
    copy = deepcopy(module)
    names = [name for name, part in copy.named_modules() if isinstance(part, MergedExperts)]
    for name, bank, total_N in zip(names, banks_of(copy), totals, strict=True):
        copy.set_submodule(name, FrozenExpert(bank, total_N / len(windows_nL1)))
    return copy


def banks_of(module: nn.Module) -> list[MergedExperts]:
    """The banks of all blocks, in their order."""
    return [part for part in module.modules() if isinstance(part, MergedExperts)]
