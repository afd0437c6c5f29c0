"""Arrow (Ostapenko et al. 2024, arXiv 2405.11157): LoRAs that are trained apart, and a router without training.

A LoRA's prototype is the input that its product stretches most; a token takes the three LoRAs whose prototypes it is
most along, in each linear layer anew. PEFT computes it (`create_arrow_model`), on the same LoRAs as PHATGOOSE's. As
PEFT has it, a score is |u . prototype| with u as long as it is, though its documentation says cosine.

Legend: W mixtures, K domains, E experts (one LoRA for each group), L tokens, O outputs of a linear layer.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from soe_model.methods.lora_pool import LoraPool, quiet_peft
from soe_model.methods.method import Cost, Trained
from soe_model.model.router import check_domain_weights

TOP = 3
"""LoRAs that a token takes, where there are so many: PEFT's default."""


class Arrow(LoraPool):
    """Two kinds of runs: the generic model and the LoRAs, which train as long as PHATGOOSE's do."""

    def instantiate(
        self,
        trained: Sequence[Trained],
        domain_weights_WK: torch.Tensor,
        windows: Sequence[torch.Tensor] | None = None,
    ) -> list[nn.Module]:
        check_domain_weights(domain_weights_WK, self.soup.num_domains)
        generic, *loras = trained
        model = arrow_model(self.base(self.plain_model(generic)), [self.module_of(lora) for lora in loras])
        return [model] * len(domain_weights_WK)

    def cost(self) -> Cost:
        """A token's FLOPs are those that PEFT computes: scores and whole outputs of all experts, and their sum.

        It holds those outputs at once, 4 L E O bytes for L tokens in a pass.
        """
        experts = self.num_groups
        outputs = sum(outputs for _, outputs in self.linear_shapes)
        pool = self.size.num_params + experts * self.lora_size
        return self.pool_cost(
            num_params=pool + experts * self.gate_size,
            pretrained_size=pool,
            routing_flops=2 * experts * (self.lora_size + self.gate_size + outputs),
        )


def arrow_model(base: nn.Module, loras: Sequence[nn.Module]) -> nn.Module:
    """PEFT's model of the base with all LoRAs and Arrow's router. PEFT takes LoRAs only from disk."""
    from peft.tuners.lora import ArrowConfig, create_arrow_model  # deptry: ignore[DEP004]

    with tempfile.TemporaryDirectory() as folder, quiet_peft():
        paths = [str(Path(folder) / str(number)) for number in range(len(loras))]
        for path, lora in zip(paths, loras, strict=True):
            lora.save_pretrained(path, save_embedding_layers=False)
        # Without a seed each prototype would begin its iteration elsewhere, and end with another sign.
        config = ArrowConfig(top_k=min(TOP, len(loras)), router_temperature=1.0, rng_seed=0)
        model = create_arrow_model(base, paths, config)
    return model.eval()
