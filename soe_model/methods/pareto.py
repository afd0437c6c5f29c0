"""Pareto manifold learning (Appendix B; Dimitriadis et al. 2023): a soup without shared part and without router.

A model is Σ_g w_g Θ_g: each group of domains has a member Θ_g, and its coefficient is the target's weight w_g of the
group (the paper's form has one domain in each). It is trained on the soup's own stream.

All members begin at the same parameters, so that every mixture begins at one good start. The weights sum to 1, so the
trainer holds that start as S, which it does not train, and the members' changes as experts:
Σ w_g (S + E_g) = S + Σ w_g E_g.

Legend: K domains, G groups, P parameters of one model.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from soe_model.methods.groups import GroupedMethod
from soe_model.methods.method import Cost, Run, Trained
from soe_model.model.router import GroupMasses
from soe_model.training.trainer import SoupTrainer


class Pareto(GroupedMethod):
    """Members are trained with the experts' learning rate: give a generic model's, as the weights sum to 1.

    There are G of them in memory: give groups for many domains. The cost in FLOPs is what the trainer computes, as for
    a soup of G experts; the gradients of coefficients, which are not needed here, are among them.
    """

    def runs(self, targets_WK: torch.Tensor | None = None) -> list[Run]:
        soup = replace(self.soup, num_experts=self.num_groups, expert_rank=None)
        return [Run(name="pareto", soup=soup, training=self.training, domain_weights_K=None)]

    def begin(self, run: Run, begun: Trained | None = None) -> SoupTrainer:
        return SoupTrainer(
            run.soup,
            run.training,
            router=GroupMasses(self.members_KG),
            train_shared=False,
            generic_K=self.generic_K,
            device=self.device,
        )

    def cost(self) -> Cost:
        members = self.num_groups * self.size.num_params
        return self.cost_of(pretrained_size=members, specialist_flops=2 * members)
