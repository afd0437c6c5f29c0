"""A sparse mixture of experts (Shazeer et al. 2017; Jiang et al. 2024), on the generic mixture: a row for context.

It holds as many MLPs in each layer as the soup has experts, and each token takes `top` of them: as many parameters for
a token as the plain backbone multiplies it with, and many more to store and serve. The model is transformers' Mixtral,
which differs from a GPT-2 backbone in more than that: rotary positions, a gated MLP, and no biases.

Legend: W mixtures, K domains, N experts of each layer, D embedding size, C width of an expert, B sequences, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from torch import nn

from soe_model.bounds import require, whole
from soe_model.methods.flat import FlatMethod
from soe_model.methods.method import Cost, Run, Trained
from soe_model.methods.module_learner import ModuleLearner
from soe_model.model.backbone import build_backbone, hugging_face_config, losses_of_logits
from soe_model.model.router import check_domain_weights
from soe_model.planning.model_size import ModelSize, model_size
from soe_model.planning.step_time import ADAM_FLOPS, token_flops
from storage_schema.errors import UserError


@dataclass(frozen=True, kw_only=True, eq=False)
class SparseMoe(FlatMethod):
    """One model for all targets. All of it has the generic model's learning rate."""

    top: int = 2
    """Experts that a token takes in a layer; Mixtral's number."""
    balance: float = 0.01
    """Weight of the loss that spreads the tokens over the experts (Fedus et al. 2022)."""
    routed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(self, ("top",), whole, "at least 1")
        require(self, ("balance",), lambda weight: 0 <= weight < float("inf"), "at least 0 and finite")
        if self.soup.num_experts < self.top:
            raise UserError(
                f"num_experts is {self.soup.num_experts}, and a token takes {self.top}: give more experts, or a lower "
                "top."
            )

    def runs(self, targets_WK: torch.Tensor | None = None) -> list[Run]:
        run = self.plain_run("sparse-moe", self.generic_K)
        return [replace(run, soup=replace(run.soup, backbone=self.mixtral))]

    def begin(self, run: Run, begun: Trained | None = None) -> ModuleLearner:
        training = run.training
        module = build_backbone(run.soup.backbone, seed=training.seed, device=self.device).module
        return ModuleLearner(
            module,
            training,
            rates=dict.fromkeys((name for name, _ in module.named_parameters()), training.learning_rate),
            of_router=lambda name: ".mlp.gate." in name,
            losses=partial(balanced_losses, balance=self.balance),
        )

    def instantiate(
        self,
        trained: Sequence[Trained],
        domain_weights_WK: torch.Tensor,
        windows: Sequence[torch.Tensor] | None = None,
    ) -> list[nn.Module]:
        check_domain_weights(domain_weights_WK, self.soup.num_domains)
        [only] = trained
        modules = only.instantiate(domain_weights_WK)
        assert isinstance(modules, list)
        return modules

    @cached_property
    def mixtral(self) -> dict[str, Any]:
        """The configuration of its model: the backbone's sizes, and experts as wide as the active size allows.

        Raises ValueError where the plain backbone is so small that no width is.
        """
        narrow = model_size(self._of_width(1))
        of_width = self._expert_size(1)
        outside = narrow.matmul_params - self.soup.num_experts * of_width
        width = (self.size.matmul_params - outside) // (self.top * of_width)
        if width < 1:
            raise UserError(
                f"routers over {self.soup.num_experts} experts leave the backbone's {self.size.matmul_params:,} active "
                f"parameters no room for {self.top} of them: give fewer experts, or a larger backbone."
            )
        return self._of_width(width)

    def _of_width(self, width: int) -> dict[str, Any]:
        plain = hugging_face_config(self.soup.backbone)
        heads = plain.num_attention_heads
        same = {
            name: value
            for name in (
                "vocab_size",
                "tie_word_embeddings",
                "bos_token_id",
                "eos_token_id",
                "initializer_range",
            )
            if (value := getattr(plain, name, None)) is not None
        }
        chosen = {
            name: self.soup.backbone[name] for name in ("attn_implementation",) if name in self.soup.backbone
        }
        return (
            same
            | chosen
            | {
                "model_type": "mixtral",
                "hidden_size": self.size.embedding_size,
                "num_hidden_layers": self.size.num_layers,
                "num_attention_heads": heads,
                "num_key_value_heads": getattr(plain, "num_key_value_heads", None) or heads,
                "max_position_embeddings": getattr(
                    plain, "max_position_embeddings", self.training.sequence_length
                ),
                "intermediate_size": width,
                "num_local_experts": self.soup.num_experts,
                "num_experts_per_tok": self.top,
                "experts_implementation": "eager",  # the others want widths of whole 16 bytes
            }
        )

    def _expert_size(self, width: int) -> int:
        """Parameters of one expert in all layers: gate, up and down."""
        return 3 * self.size.embedding_size * width * self.size.num_layers

    @property
    def active(self) -> ModelSize:
        """What a token meets of the model: its cost without the experts that it does not take."""
        whole = model_size(self.mixtral)
        left = (self.soup.num_experts - self.top) * self._expert_size(self.mixtral["intermediate_size"])
        return replace(whole, num_params=whole.num_params - left, matmul_params=whole.matmul_params - left)

    def cost(self) -> Cost:
        """Stored and served are all experts; a token's FLOPs are those of its own."""
        [run] = self.runs()
        stored, active = model_size(self.mixtral).num_params, self.active
        of_token = token_flops(active, self.training.sequence_length)
        return Cost(
            specialist_size=stored,
            active_size=active.num_params,
            pretrained_size=stored,
            pretraining_tokens=run.tokens,
            pretraining_flops=3 * of_token * run.tokens + ADAM_FLOPS * stored * run.training.steps,
            specialist_flops=0,
            token_flops=of_token,
        )


def balanced_losses(model: nn.Module, tokens_BL1: torch.Tensor, *, balance: float) -> torch.Tensor:
    """Loss of each next token [B, L], with the balancing loss of the batch on top of each."""
    outputs = model(input_ids=tokens_BL1[:, :-1], output_router_logits=True)
    return losses_of_logits(outputs.logits, tokens_BL1) + balance * outputs.aux_loss
