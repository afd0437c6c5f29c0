"""Generic pretraining (section 3.1), the soup's twin: the same backbone without experts, on the generic mixture."""

from __future__ import annotations

import torch

from soe_model.methods.flat import FlatMethod
from soe_model.methods.method import Cost, Run


class Generic(FlatMethod):
    """One model for all targets. Give it a training with a learning rate of its own, which is higher than a soup's."""

    def runs(self, targets_WK: torch.Tensor | None = None) -> list[Run]:
        return [self.plain_run("generic", self.generic_K)]

    def cost(self) -> Cost:
        return self.cost_of(pretrained_size=self.size.num_params, specialist_flops=0)
