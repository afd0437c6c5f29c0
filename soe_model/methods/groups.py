"""Groups of domains, for methods with one model for each group: of a thousand domains each would be too many.

Legend: W mixtures, K domains, C coarse clusters, G groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from soe_model.methods.flat import FlatMethod
from storage_schema.errors import UserError


def coarse_groups(generic_K: torch.Tensor, num_coarse: int) -> torch.Tensor:
    """The group of each domain, int64 [K], where each coarse cluster of the tree is a group.

    Domain i lies in the cluster i // (K / C). A cluster without text joins the one before it, as no model can be
    trained on it.
    """
    num_domains = len(generic_K)
    if num_coarse < 1 or num_domains % num_coarse:
        raise UserError(
            f"{num_domains} domains are not shared evenly by {num_coarse} coarse clusters; give the tree's number."
        )
    coarse_K = torch.arange(num_domains) // (num_domains // num_coarse)
    share_C = torch.zeros(num_coarse, dtype=generic_K.dtype).index_add_(0, coarse_K, generic_K.cpu())
    number_C = ((share_C > 0).cumsum(0) - 1).clamp(min=0)
    return number_C[coarse_K]


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupedMethod(FlatMethod):
    """A method with one model for each group of domains."""

    group_K: torch.Tensor | None = None
    """The group of each domain, int64 [K], numbered from 0 without a gap; see :func:`coarse_groups`. None: each domain
    that has text is a group."""

    def __post_init__(self) -> None:
        group_K, num_domains = self.group_K, self.soup.num_domains
        if group_K is None:
            return
        if group_K.shape != (num_domains,) or group_K.is_floating_point() or group_K.min() < 0:
            raise UserError(
                f"group_K is {group_K.dtype} {list(group_K.shape)}; give a whole number from 0 on for each of the "
                f"{num_domains} domains."
            )
        empty_G = self.shares_G <= 0
        if empty_G.any():
            raise UserError(
                f"group {empty_G.nonzero()[0].item()} of {self.num_groups} has no text: the generic mixture gives its "
                "domains no weight. Put them into another group."
            )

    @cached_property
    def members_KG(self) -> torch.Tensor:
        """1 where a domain belongs to a group, and else 0; float32."""
        group_K = coarse_groups(self.generic_K, len(self.generic_K)) if self.group_K is None else self.group_K
        return torch.nn.functional.one_hot(group_K.long()).float().to(self.generic_K.device)

    @property
    def num_groups(self) -> int:
        return self.members_KG.shape[1]

    @property
    def shares_G(self) -> torch.Tensor:
        """The generic mixture's weight of each group."""
        return self.generic_K @ self.members_KG

    @property
    def mixtures_GK(self) -> torch.Tensor:
        """The generic mixture within each group, [G, K]: what a group's model is trained on."""
        return (self.generic_K[:, None] * self.members_KG / self.shares_G).T.contiguous()

    def masses(self, domain_weights_WK: torch.Tensor) -> torch.Tensor:
        """How much of each mixture lies in each group, [W, G]."""
        return domain_weights_WK @ self.members_KG
