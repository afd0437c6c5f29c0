"""Generic pretraining (section 3.1), the soup's twin: the same backbone without experts, on the generic mixture."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from soe_model.bounds import require
from soe_model.methods.flat import FlatMethod
from soe_model.methods.method import Cost, Run

SIZE, UNIFORM = MIXTURES = "size", "uniform"


@dataclass(frozen=True, kw_only=True, eq=False)
class Generic(FlatMethod):
    """One model for all targets. Give it a training with a learning rate of its own, which is higher than a soup's.

    Raises UserError if `mixture` is none of ``MIXTURES``.
    """

    mixture: str = SIZE
    """``size``: a domain weighs its share of the corpus. ``uniform``: all domains that hold text weigh the same, as
    they do for a soup on the average of the `sparse` law. What a soup gains over that one is no gain of reading small
    domains more often."""

    def __post_init__(self) -> None:
        require(self, ("mixture",), lambda mixture: mixture in MIXTURES, f"one of {', '.join(MIXTURES)}")

    def runs(self, targets_WK: torch.Tensor | None = None) -> list[Run]:
        weights_K = self.generic_K
        if self.mixture == UNIFORM:
            weights_K = (weights_K > 0).float()
            weights_K /= weights_K.sum()
        return [self.plain_run("generic", weights_K)]

    def cost(self) -> Cost:
        return self.cost_of(pretrained_size=self.size.num_params, specialist_flops=0)
