"""PHATGOOSE (Muqeeth, Liu, Liu and Raffel 2024, arXiv 2402.05859): LoRAs that are trained apart, and a gate for each.

After its LoRA each group trains one gate vector per linear layer for 100 steps; all else is frozen (section 3).
Then the pool is one model, in which each token takes the two LoRAs that score highest, in each linear layer anew
(soe_model/model/routed_linear.py). It never reads domain weights, so it is the same model for all targets.

Legend: W mixtures, K domains, E experts (one LoRA and its gates for each group), I inputs of a linear layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import nn

from soe_model.methods.lora_pool import LoraPool, loras_of
from soe_model.methods.method import Cost, Learner, Run, Trained
from soe_model.methods.module_learner import ModuleLearner
from soe_model.model.routed_linear import RoutedLinear, TokenGate, kept_of_scores
from soe_model.model.router import check_domain_weights
from soe_model.planning.step_time import ADAM_FLOPS
from storage_schema.errors import UserError

KEPT = 0.9
"""The least part of a gate's scores that LayerNorm's epsilon may leave: a standard deviation of 0.0065."""


class Phatgoose(LoraPool):
    """Three kinds of runs: the generic model, a LoRA for each group, and the gates of each LoRA on the same mixture."""

    def runs(self, targets_WK: torch.Tensor | None = None) -> list[Run]:
        generic, *loras = super().runs(targets_WK)
        _, _, of_gates = self.shared_steps()
        gates = [
            self.adapter_run(f"gate-{g:03d}", weights_K, of_gates, begins_from=lora.name)
            for g, (lora, weights_K) in enumerate(zip(loras, self.mixtures_GK, strict=True))
        ]
        return [generic, *loras, *gates]

    def begin(self, run: Run, begun: Trained | None = None) -> Learner:
        if not run.name.startswith("gate-"):
            return super().begin(run, begun)
        assert begun is not None, "gates begin from their LoRA"
        module, names = gated(self.module_of(begun))
        return ModuleLearner(module, run.training, rates=dict.fromkeys(names, run.training.learning_rate))

    def instantiate(
        self,
        trained: Sequence[Trained],
        domain_weights_WK: torch.Tensor,
        windows: Sequence[torch.Tensor] | None = None,
    ) -> list[nn.Module]:
        """Raises ValueError too for gates so small that LayerNorm's epsilon would flatten their scores."""
        check_domain_weights(domain_weights_WK, self.soup.num_domains)
        modules = [self.module_of(one) for one in trained[1 + self.num_groups :]]
        check_gates(modules)
        return [routed(self.base(self.plain_model(trained[0])), modules)] * len(domain_weights_WK)

    def run_flops(self, run: Run) -> float:
        """Of gates too: their gradient costs what a LoRA's and the frozen model's costs, but for the LoRA's weights."""
        if not run.name.startswith("gate-"):
            return super().run_flops(run)
        of_lora = ADAM_FLOPS * self.lora_size * run.training.steps + 2 * self.lora_size * run.tokens
        of_gates = ADAM_FLOPS * self.gate_size * run.training.steps + 6 * self.gate_size * run.tokens
        return super().run_flops(run) - of_lora + of_gates

    def cost(self) -> Cost:
        """A token's FLOPs are those computed: all E scores and A's, and B's of all experts, of which two count.

        The latency is larger than the FLOPs say: each linear layer becomes three, with a choice of experts between.
        """
        experts = self.num_groups
        num_params = self.size.num_params + experts * (self.lora_size + self.gate_size)
        return self.pool_cost(
            num_params=num_params,
            pretrained_size=num_params,
            routing_flops=2 * experts * (self.lora_size + self.gate_size),
        )


def gated(lora: nn.Module) -> tuple[nn.Module, list[str]]:
    """A copy of a model with a LoRA, whose LoRA reads each token through a new gate; and the gates' names."""
    module = deepcopy(lora)
    for layer in loras_of(module).values():
        layer.token_gate = TokenGate(layer.in_features).to(next(layer.parameters()).device)
        gate = layer.token_gate
        layer.lora_A["default"].register_forward_pre_hook(lambda _, inputs, gate=gate: (gate(inputs[0]),))
    return module, [name for name, _ in module.named_parameters() if name.endswith(".token_gate.gate_I")]


def gate_spread(modules: Sequence[nn.Module]) -> dict[str, torch.Tensor]:
    """Standard deviation of the gates of each expert [E], by the linear layer's name: what to report of them."""
    return {name: gates_EI.std(1, correction=0) for name, gates_EI in _gates(modules).items()}


def check_gates(modules: Sequence[nn.Module]) -> None:
    """Raise ValueError, naming the worst gate, unless LayerNorm's epsilon leaves all scores nearly whole."""
    worst = min(
        (kept.item(), name, number)
        for name, gates_EI in _gates(modules).items()
        for number, kept in enumerate(kept_of_scores(gates_EI))
    )
    kept, name, number = worst
    if not kept >= KEPT:
        spread = gate_spread(modules)[name][number].item()
        raise UserError(
            f"the gate of expert {number} at {name} has a standard deviation of {spread:.2g}: LayerNorm's epsilon "
            f"leaves {kept:.0%} of its scores, and at least {KEPT:.0%} (0.0065) are needed for sharp routing. Give "
            "more gate_steps or a higher lora_learning_rate."
        )


def routed(base: nn.Module, modules: Sequence[nn.Module], *, top: int = 2) -> nn.Module:
    """The base model, changed in place, with the LoRAs and gates of all modules.

    Its `gate_spread` is the least standard deviation of a gate, to be reported.
    """
    pools, gates = [loras_of(module) for module in modules], _gates(modules)
    for name, first in pools[0].items():
        factors = [
            (pool[name].lora_A["default"].weight, pool[name].lora_B["default"].weight) for pool in pools
        ]
        layer = RoutedLinear(
            base.get_submodule(name),
            down_ErI=torch.stack([down for down, _ in factors]),
            up_EOr=torch.stack([up for _, up in factors]),
            gates_EI=gates[name],
            scale=first.scaling["default"],
            top=top,
        )
        base.set_submodule(name, layer)
    base.gate_spread = min(spread_E.min().item() for spread_E in gate_spread(modules).values())
    return base.eval()


def _gates(modules: Sequence[nn.Module]) -> dict[str, torch.Tensor]:
    """The gates of all experts [E, I], by the linear layer's name."""
    pools = [loras_of(module) for module in modules]
    return {name: torch.stack([pool[name].token_gate.gate_I.detach() for pool in pools]) for name in pools[0]}
