"""Domain experts (section 3.1; Gross et al. 2017): one model for each group of domains, chosen by its loss.

From scratch they are the paper's. Branched from a generic run they are a stronger form at equal total tokens (Seto et
al. 2026; Li et al. 2022).

Legend: W targets, K domains, G groups, P parameters of one model, L tokens in a window, n windows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from soe_model.bounds import finite_positive, require, whole
from soe_model.methods.groups import GroupedMethod
from soe_model.methods.method import Cost, Run, Trained
from soe_model.model.router import check_domain_weights
from soe_model.planning.step_time import token_flops
from storage_schema.errors import UserError


@dataclass(frozen=True, kw_only=True, eq=False)
class DomainExperts(GroupedMethod):
    """A model for each group, from scratch. `training` is that of one run; the total is G times as many tokens."""

    choosing_windows: int = 64
    """Of a target's windows, how many choose among the models; later ones are not looked at."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, ("choosing_windows",), whole, "at least 1")

    def runs(self, targets_WK: torch.Tensor | None = None) -> list[Run]:
        return [self.plain_run(f"group-{g:03d}", weights_K) for g, weights_K in enumerate(self.mixtures_GK)]

    def instantiate(
        self,
        trained: Sequence[Trained],
        domain_weights_WK: torch.Tensor,
        windows: Sequence[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """For each target the trained model of the smallest loss on its windows; the weights do not matter."""
        check_domain_weights(domain_weights_WK, self.soup.num_domains)
        models = (self.plain_model(one) for one in trained)
        return self.best((model_P.expand(len(domain_weights_WK), -1) for model_P in models), windows)

    def best(
        self, candidates: Iterable[torch.Tensor], windows: Sequence[torch.Tensor] | None
    ) -> torch.Tensor:
        """Of each target's candidates that of the smallest mean loss on its windows, [W, P]; the first of equals.

        A candidate whose loss is not finite is passed over.

        Args:
            candidates: each float32 [W, P], one model for each target; held one at a time.
        """
        best_WP = least_W = None
        for models_WP in candidates:
            if best_WP is None:
                _check_windows(windows, len(models_WP))
                best_WP = models_WP.clone(memory_format=torch.contiguous_format)
                least_W = torch.full((len(models_WP),), math.inf, dtype=torch.float64)
            assert windows is not None and least_W is not None
            for w, (model_P, windows_nL1) in enumerate(zip(models_WP, windows, strict=True)):
                loss = self.loss(model_P, windows_nL1[: self.choosing_windows]).mean().cpu()
                if loss < least_W[w]:
                    least_W[w], best_WP[w] = loss, model_P
        assert best_WP is not None
        return best_WP

    def choice_flops(self, candidates: int) -> float:
        """FLOPs of choosing among so many models."""
        length = self.training.sequence_length
        return candidates * self.choosing_windows * length * token_flops(self.size, length)

    def cost(self) -> Cost:
        kept = len(self.runs())
        return self.cost_of(
            pretrained_size=kept * self.size.num_params, specialist_flops=self.choice_flops(kept)
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class BranchedExperts(DomainExperts):
    """A generic run, then a model for each group that begins from it; all of them together take `training.steps`.

    The generic model is one of those that are chosen among. Each run has a whole schedule of its own.
    """

    generic_share: float = 0.5
    """The share of all steps that the generic run has; the groups share the rest evenly."""
    branch_rate: float = 0.3
    """Peak learning rate of a branch over the generic run's: it begins from a trained model, with a new optimizer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, ("generic_share",), lambda share: 0 < share < 1, "above 0 and below 1")
        require(self, ("branch_rate",), finite_positive, "positive and finite")

    def runs(self, targets_WK: torch.Tensor | None = None) -> list[Run]:
        steps, groups = self.training.steps, self.num_groups
        of_branch = round(steps * (1 - self.generic_share)) // groups
        of_generic = steps - groups * of_branch
        if not of_branch or not of_generic:
            raise UserError(
                f"of {steps} steps, {groups} groups have {of_branch} each and the generic run {of_generic}, with "
                f"generic_share={self.generic_share}. Give more steps, fewer groups or another share."
            )
        generic = self.plain_run("generic", self.generic_K, steps=of_generic)
        return [generic] + [
            self.plain_run(
                f"group-{g:03d}", weights_K, steps=of_branch, rate=self.branch_rate, begins_from=generic.name
            )
            for g, weights_K in enumerate(self.mixtures_GK)
        ]


def _check_windows(windows: Sequence[torch.Tensor] | None, num_targets: int) -> None:
    found = 0 if windows is None else len(windows)
    if found != num_targets:
        raise UserError(
            f"there are windows of {found} targets, and {num_targets} targets: this method chooses among models by "
            "their loss, so give windows of each target."
        )
