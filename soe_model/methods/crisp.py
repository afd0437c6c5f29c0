"""CRISP (section 3.1; Grangier et al. 2024b): a pretraining of its own for each target, on the target's mixture.

Legend: W targets, K domains, P parameters of one model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from soe_model.bounds import require, whole
from soe_model.methods.flat import FlatMethod
from soe_model.methods.method import Cost, Run, Trained
from soe_model.model.router import check_domain_weights
from soe_model.planning.step_time import whole_step_flops
from storage_schema.errors import UserError


@dataclass(frozen=True, kw_only=True, eq=False)
class Crisp(FlatMethod):
    """Run i is the model of target i. `training` is that of one run, with the learning rate of a generic one."""

    shared_by: int = 1
    """So many targets share the training's steps; 1: each has all of them."""

    def __post_init__(self) -> None:
        require(self, ("shared_by",), whole, "at least 1")
        if self.shared_by > self.training.steps:
            raise UserError(f"shared_by is {self.shared_by}: of {self.training.steps} steps none has one.")

    def runs(self, targets_WK: torch.Tensor | None = None) -> list[Run]:
        if targets_WK is None:
            raise UserError("crisp trains one model for each target: give the targets' domain weights.")
        check_domain_weights(targets_WK, self.soup.num_domains)
        return [self._run(f"target-{i:03d}", weights_K) for i, weights_K in enumerate(targets_WK)]

    def _run(self, name: str, weights_K: torch.Tensor) -> Run:
        return self.plain_run(name, weights_K, steps=self.training.steps // self.shared_by)

    def instantiate(
        self,
        trained: Sequence[Trained],
        domain_weights_WK: torch.Tensor,
        windows: Sequence[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """The models of the targets that were given to :meth:`runs`, in their order; there are no others."""
        check_domain_weights(domain_weights_WK, self.soup.num_domains)
        if len(trained) != len(domain_weights_WK):
            raise UserError(
                f"crisp has {len(trained)} models for {len(domain_weights_WK)} targets: it has one model for each "
                "target that it was trained for, and none for others."
            )
        return torch.stack([self.plain_model(one) for one in trained])

    def cost(self) -> Cost:
        """Nothing before a target is known, and a whole pretraining for each then."""
        run = self._run("target", self.generic_K)
        return self.cost_of(
            [],
            pretrained_size=0,
            specialist_flops=run.training.steps * whole_step_flops(self.setup(run)),
            specialist_tokens=run.tokens,
        )
