"""Merging of branched experts: what the experts changed of the generic model is weighted, combined and added to it.

With δ_g the change of the expert of group g, and w_g the target's weight of that group, a model is
Θ = generic + λ merge(δ, w). The linear merge takes λ = 1 and is Σ w_g Θ_g (the paper's, section 3.3, with uniform
weights over its domains). The other methods choose λ, and how much of each δ they keep, by the loss on the target's
windows: never on what is reported. TIES and DARE prune with PEFT's functions.

Legend: W targets, K domains, G groups, g of them that a target has weight in, P parameters of one model.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from soe_model.methods.domain_experts import BranchedExperts
from soe_model.methods.method import Cost, Trained
from soe_model.model.router import check_domain_weights
from storage_schema.errors import UserError

SCALINGS = (0.0, 0.5, 1.0, 1.5, 2.0)
"""With 0, the generic model, which the branched experts have among them too."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MergedExperts(BranchedExperts):
    """The base of the merges: each has a `merge` of its own, and some a `prune`."""

    scalings: tuple[float, ...] = (1.0,)
    """Values of λ to choose from."""
    densities: tuple[float, ...] = (1.0,)
    """Shares of each expert's changes that are kept, to choose from."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("scalings", "densities"):
            values = getattr(self, name)
            if not isinstance(values, tuple) or not all(isinstance(one, int | float) for one in values):
                raise UserError(f"{name} is {values!r:.40}; it must be a list of numbers.")
            if not values:
                raise UserError(f"{name} is empty; give at least one value.")

    def prune(self, deltas_GP: torch.Tensor, density: float) -> torch.Tensor:
        """What is kept of the experts' changes, once for all targets, [G, P]."""
        return deltas_GP

    @abstractmethod
    def merge(self, deltas_GP: torch.Tensor, masses_G: torch.Tensor) -> torch.Tensor:
        """The merged change of one target, float32 [P]."""

    def instantiate(
        self,
        trained: Sequence[Trained],
        domain_weights_WK: torch.Tensor,
        windows: Sequence[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        check_domain_weights(domain_weights_WK, self.soup.num_domains)
        generic_P, *experts = (self.plain_model(one) for one in trained)
        deltas_GP = torch.stack([expert_P - generic_P for expert_P in experts])
        masses_WG = self.masses(domain_weights_WK).to(deltas_GP)
        candidates = self._candidates(generic_P, deltas_GP, masses_WG)
        return next(candidates) if self.num_candidates == 1 else self.best(candidates, windows)

    def _candidates(
        self, generic_P: torch.Tensor, deltas_GP: torch.Tensor, masses_WG: torch.Tensor
    ) -> Iterator[torch.Tensor]:
        for density in self.densities:
            kept_GP = self.prune(deltas_GP, density)
            merged_WP = torch.stack([self.merge(kept_GP, masses_G) for masses_G in masses_WG])
            for scaling in self.scalings:
                yield generic_P + scaling * merged_WP

    @property
    def num_candidates(self) -> int:
        return len(self.scalings) * len(self.densities)

    def cost(self) -> Cost:
        """Sums of the experts and the choice are counted; finding the largest changes is not."""
        size, kept = self.size.num_params, len(self.runs())
        sums = 2 * len(self.densities) * self.num_groups * size
        choice = self.choice_flops(self.num_candidates) if self.num_candidates > 1 else 0
        return self.cost_of(pretrained_size=kept * size, specialist_flops=sums + choice)


class LinearMerge(MergedExperts):
    """The average of the experts, weighted by the target's weight of each group."""

    def merge(self, deltas_GP: torch.Tensor, masses_G: torch.Tensor) -> torch.Tensor:
        return masses_G @ deltas_GP


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskArithmetic(LinearMerge):
    """The linear merge, taken further or less far (Ilharco et al. 2022)."""

    scalings: tuple[float, ...] = SCALINGS


@dataclass(frozen=True, kw_only=True, eq=False)
class PrunedMerge(LinearMerge):
    """The base of merges that keep a share of each tensor's changes, by PEFT."""

    scalings: tuple[float, ...] = SCALINGS

    def __post_init__(self) -> None:
        super().__post_init__()
        if find_spec("peft") is None:
            raise UserError(
                "TIES and DARE are functions of peft, which the extra `exports` installs: "
                "pip install 'soup-of-experts[exports]'."
            )
        if not all(0 < density < 1 for density in self.densities):
            raise UserError(f"densities is {self.densities}; each must be above 0 and below 1.")

    def prune_by_tensor(self, deltas_GP: torch.Tensor, density: float, **how: Any) -> torch.Tensor:
        from peft.utils.merge_utils import prune  # deptry: ignore[DEP004]

        kept_GP = torch.empty_like(deltas_GP)
        for slot in self._backbone.layout:
            columns = slice(slot.offset, slot.offset + slot.size)
            for kept_P, delta_P in zip(kept_GP, deltas_GP, strict=True):
                kept_P[columns] = prune(delta_P[columns], density, **how)
        return kept_GP


@dataclass(frozen=True, kw_only=True, eq=False)
class Ties(PrunedMerge):
    """TIES (Yadav et al. 2023): the largest changes of each expert; of each parameter only those of the sign that
    prevails.

    The vote is weighted, and the weighted sum is divided by the weights of those that agree, as mergekit does it: so
    with equal weights it is the paper's mean, and where all agree the linear merge. PEFT divides by their number, which
    with uneven weights takes a parameter that one heavy expert keeps several times as far as that expert did.
    """

    densities: tuple[float, ...] = (0.2, 0.5)

    def prune(self, deltas_GP: torch.Tensor, density: float) -> torch.Tensor:
        return self.prune_by_tensor(deltas_GP, density, method="magnitude")

    def merge(self, deltas_GP: torch.Tensor, masses_G: torch.Tensor) -> torch.Tensor:
        from peft.utils.merge_utils import calculate_majority_sign_mask  # deptry: ignore[DEP004]

        masses_G1 = masses_G[:, None]
        agree_GP = calculate_majority_sign_mask(masses_G1 * deltas_GP)
        agreeing_P = (masses_G1 * agree_GP).sum(0)
        return (masses_G1 * deltas_GP * agree_GP).sum(0) / agreeing_P.clamp(
            min=torch.finfo(agreeing_P.dtype).tiny
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Dare(PrunedMerge):
    """DARE (Yu et al. 2023): changes are dropped at random, and the others made larger by as much.

    A draw is one of many: compare the losses of several seeds.
    """

    densities: tuple[float, ...] = (0.5,)
    seed: int = 0

    def prune(self, deltas_GP: torch.Tensor, density: float) -> torch.Tensor:
        with torch.random.fork_rng([deltas_GP.device] if deltas_GP.is_cuda else []):
            torch.manual_seed(self.seed)
            return self.prune_by_tensor(deltas_GP, density, method="random", rescale=True)
