"""The Soup-of-Experts (section 2.3): one run on sparse mixtures, then a model for any domain weights."""

from __future__ import annotations

import torch

from soe_model.methods.flat import FlatMethod
from soe_model.methods.method import Cost, Run
from soe_model.planning.state_size import soup_params
from soe_model.planning.step_time import instance_flops


class Soup(FlatMethod):
    """A model is S + Σ_j α_j E_j, with α = φ(h) (eq. 2)."""

    def runs(self, targets_WK: torch.Tensor | None = None) -> list[Run]:
        return [Run(name="soup", soup=self.soup, training=self.training, domain_weights_K=None)]

    def cost(self) -> Cost:
        [run] = self.runs()
        setup = self.setup(run)
        return self.cost_of(pretrained_size=soup_params(setup), specialist_flops=instance_flops(setup))
