"""SMEAR (Muqeeth, Liu and Raffel 2023, arXiv 2306.03745) on the soup's stream, in causal form.

What it isolates: SMEAR routes on the hidden states of each block and each sequence, a soup on known domain weights once
per model. The banks lie in soe_model/model/merged_experts.py, which says how they are made causal.

Legend: W mixtures, K domains, N experts, C width of an expert, D embedding size, L tokens in a sequence, S segments,
n windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn

from soe_model.bounds import require, whole
from soe_model.methods.flat import FlatMethod
from soe_model.methods.method import Cost, Instance, Run, Trained
from soe_model.methods.module_learner import ModuleLearner
from soe_model.model.backbone import build_backbone
from soe_model.model.flat_module import FlatModule
from soe_model.model.merged_experts import EXPERT_TENSORS, MergedExperts, banks_of, entropy, frozen
from soe_model.model.router import check_domain_weights
from soe_model.planning.state_size import soup_params
from soe_model.planning.step_time import ADAM_FLOPS, token_flops
from soe_model.specialists.coefficient_learning import Learned, Learning
from soe_model.specialists.fine_tuning import fine_tune
from storage_schema.errors import UserError


@dataclass(frozen=True, kw_only=True, eq=False)
class Smear(FlatMethod):
    """One model for all targets, whose routers choose inside for each sequence.

    The soup's three learning rates are those of the backbone, the experts and the routers. Without a soup's sums of
    experts in each parameter, the backbone bears a generic model's rate; experts and routers do not.
    """

    width: int | None = None
    """C; None: as many parameters in all as the soup has."""
    segments: int = 4
    """S, the segments of a whole sequence; 1: the routers read nothing, and choose the same for all texts."""
    dropout: float = 0.1
    """Share of the experts that a segment goes without in training (section 3)."""
    routed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(self, ("width",), lambda width: width is None or whole(width), "at least 1")
        require(self, ("segments",), whole, "at least 1")
        require(self, ("dropout",), lambda share: 0 <= share < 1, "at least 0 and below 1")
        if not self.soup.num_experts:
            raise UserError("num_experts is 0; smear needs at least 1 expert to merge.")

    def runs(self, targets_WK: torch.Tensor | None = None) -> list[Run]:
        return [Run(name="smear", soup=self.soup, training=self.training, domain_weights_K=None)]

    def begin(self, run: Run, begun: Trained | None = None) -> ModuleLearner:
        module, training = self._build(run.training.seed), run.training
        rates = {name: training.learning_rate for name, _ in module.named_parameters()}
        for name in rates:
            if _of_router(name):
                rates[name] = training.router_learning_rate
            elif name.rpartition(".")[2] in EXPERT_TENSORS:
                rates[name] = training.expert_learning_rate
        return ModuleLearner(
            module,
            training,
            rates=rates,
            of_router=_of_router,
            router_entropy=lambda: entropy(banks_of(module)),
        )

    def _build(self, seed: int) -> nn.Module:
        module = build_backbone(self.soup.backbone, seed=seed, device="cpu").module
        blocks = [name for name, _ in module.named_modules() if name.rpartition(".")[2] == "mlp"]
        if len(blocks) != self.size.num_layers:
            raise UserError(
                f"the backbone has {self.size.num_layers} layers and {len(blocks)} modules named mlp, which the "
                "experts of smear follow. Take a backbone as GPT-2 or Llama."
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 2)
            for name in blocks:
                bank = MergedExperts(
                    module.get_submodule(name),
                    embedding_size=self.size.embedding_size,
                    num_experts=self.soup.num_experts,
                    width=self.expert_width,
                    segment_length=self.segment_length,
                    dropout=self.dropout,
                )
                module.set_submodule(name, bank)
        return module.to(self.device)

    def instantiate(
        self,
        trained: Sequence[Trained],
        domain_weights_WK: torch.Tensor,
        windows: Sequence[torch.Tensor] | None = None,
    ) -> list[nn.Module]:
        check_domain_weights(domain_weights_WK, self.soup.num_domains)
        [only] = trained
        return _modules(only.instantiate(domain_weights_WK))

    @property
    def segment_length(self) -> int:
        """Tokens of a segment; a sequence shorter than the training's has fewer segments."""
        return -(-self.training.sequence_length // self.segments)

    @property
    def expert_width(self) -> int:
        """C. Where it follows from the soup's size, all parameters together are at most the soup's."""
        if self.width is not None:
            return self.width
        size, experts = self.size, self.soup.num_experts
        [run] = self.runs()
        of_bank = (soup_params(self.setup(run)) - size.num_params) / size.num_layers - self._router_size
        return max(1, int((of_bank / experts - size.embedding_size) // (2 * size.embedding_size + 1)))

    @property
    def _router_size(self) -> int:
        """Parameters of one router: two LayerNorms, the columns and the bias."""
        return 4 * self.size.embedding_size + self.soup.num_experts * (self.size.embedding_size + 1)

    @property
    def _expert_size(self) -> int:
        """Parameters of one expert of one block."""
        embedding, width = self.size.embedding_size, self.expert_width
        return 2 * embedding * width + width + embedding

    @property
    def all_params(self) -> int:
        """Parameters of backbone, experts and routers: trained, stored, and needed to serve the routed model."""
        of_block = self.soup.num_experts * self._expert_size + self._router_size
        return self.size.num_params + self.size.num_layers * of_block

    def routed_token_flops(self) -> float:
        """FLOPs of a token: the backbone, the merged experts, and its part of routing and merging each segment anew.

        Of merging, which is ``2 N (2 D C + C + D)`` per block and segment, a sequence of one token pays the whole.
        """
        experts, length = self.soup.num_experts, self.training.sequence_length
        merging = 2 * experts * self._expert_size + 2 * experts * self.size.embedding_size
        segments = -(-length // self.segment_length)
        of_adapters = (
            self._adapter_flops * segments * self.segment_length / length
        )  # the padding is computed too
        return (
            token_flops(self.size, length) + of_adapters + self.size.num_layers * merging * segments / length
        )

    @property
    def _adapter_flops(self) -> float:
        """FLOPs of a token in the merged experts of all blocks."""
        return 4 * self.size.embedding_size * self.expert_width * self.size.num_layers

    def cost(self) -> Cost:
        [run] = self.runs()
        adam = ADAM_FLOPS * self.all_params * run.training.steps
        return Cost(
            specialist_size=self.all_params,
            pretrained_size=self.all_params,
            pretraining_tokens=run.tokens,
            pretraining_flops=3 * self.routed_token_flops() * run.tokens + adam,
            specialist_flops=0,
            token_flops=self.routed_token_flops(),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class SmearFrozen(Smear):
    """The same run, whose routers are frozen: their mean shares on a target's windows make ONE model without routers.

    This is ours: SMEAR itself has no static specialist. Say "frozen" beside its losses.
    """

    windows_read: int = 32
    """Of a target's windows, at most so many decide."""
    routed: ClassVar[bool] = False

    def instantiate(
        self,
        trained: Sequence[Trained],
        domain_weights_WK: torch.Tensor,
        windows: Sequence[torch.Tensor] | None = None,
    ) -> list[nn.Module]:
        """Raises ValueError too where a target has no window."""
        routed = super().instantiate(trained, domain_weights_WK)
        if windows is None or len(windows) != len(routed) or not all(map(len, windows)):
            raise UserError(
                "smear-frozen takes its shares from the targets' own text: give windows for each of them."
            )
        pairs = zip(routed, windows, strict=True)
        return [frozen(module, windows_nL1[: self.windows_read]) for module, windows_nL1 in pairs]

    def fine_tune(
        self,
        instance: Instance,
        windows_nL1: torch.Tensor,
        stopping_mL1: torch.Tensor,
        learning: Learning,
    ) -> tuple[Instance, Learned]:
        """The merged adapters are trained with the backbone."""
        assert isinstance(instance, nn.Module)
        flat = FlatModule(deepcopy(instance).eval().requires_grad_())
        tuned_P, learned = fine_tune(flat.module, flat.params_P, windows_nL1, stopping_mL1, learning)
        flat.params_P.copy_(tuned_P)
        return flat.module, learned

    def cost(self) -> Cost:
        size = self.size
        merging = 2 * self.soup.num_experts * self._expert_size * size.num_layers
        reading = self.windows_read * self.training.sequence_length * self.routed_token_flops()
        return replace(
            super().cost(),
            specialist_size=size.num_params + size.num_layers * self._expert_size,
            specialist_flops=merging + reading,
            token_flops=token_flops(size, self.training.sequence_length) + self._adapter_flops,
        )


def _of_router(name: str) -> bool:
    return ".mlp.router." in name


def _modules(instances: object) -> list[nn.Module]:
    assert isinstance(instances, list)
    return instances
