"""A pool of LoRAs on one frozen generic model, each trained on a group of domains: what routers choose from afterwards.

PEFT (https://github.com/huggingface/peft, of the extra `exports`) makes the LoRAs: one beside each linear layer, its
product divided by the rank, as in PHATGOOSE.

Legend: W mixtures, K domains, G groups, r the rank of a LoRA, P parameters of one model, L tokens in a sequence,
I inputs and O outputs of a linear layer.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from typing import ClassVar

import torch
from torch import nn

from soe_model.bounds import finite_positive, require, whole
from soe_model.methods.groups import GroupedMethod
from soe_model.methods.method import Cost, Learner, Run, Trained
from soe_model.methods.module_learner import ModuleLearner
from soe_model.model.backbone import build_backbone
from soe_model.planning.step_time import ADAM_FLOPS, step_flops, token_flops, whole_step_flops
from storage_schema.errors import UserError

GATE_STEPS = 100
"""Steps of a gate's training in PHATGOOSE."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LoraPool(GroupedMethod):
    """Trains the generic model and the LoRAs. `training.steps` are those of all runs together, gates included."""

    lora_rank: int = 4
    """r; PHATGOOSE has 16 in a model of 3 billion parameters."""
    generic_share: float = 0.5
    """Of all steps, those of the generic model."""
    gate_steps: int | None = None
    """Of each LoRA's gates; None: 100, or a quarter of the group's steps where that is less."""
    lora_learning_rate: float = 5e-3
    """Of LoRAs and gates; PHATGOOSE's."""
    routed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, ("lora_rank",), whole, "at least 1")
        require(self, ("generic_share",), lambda share: 0 < share < 1, "above 0 and below 1")
        require(self, ("gate_steps",), lambda number: number is None or whole(number), "at least 1")
        require(self, ("lora_learning_rate",), finite_positive, "positive and finite")
        if find_spec("peft") is None:
            raise UserError(
                "LoRAs are made by peft, which the extra `exports` installs: pip install 'soup-of-experts[exports]'."
            )
        self.shared_steps()

    def shared_steps(self) -> tuple[int, int, int]:
        """Steps of the generic run (as many as branched experts have), of each LoRA and of each LoRA's gates."""
        steps, groups = self.training.steps, self.num_groups
        of_group = round(steps * (1 - self.generic_share)) // groups
        of_gates = min(GATE_STEPS, max(of_group // 4, 1)) if self.gate_steps is None else self.gate_steps
        of_generic = steps - groups * of_group
        if of_generic < 1 or of_group <= of_gates:
            raise UserError(
                f"of {steps} steps, {groups} groups have {of_group} each and the generic run {of_generic}, with "
                f"generic_share={self.generic_share}; the gates of a group take {of_gates}, its LoRA needs the others. "
                "Give more steps, fewer groups or another share."
            )
        return of_generic, of_group - of_gates, of_gates

    def runs(self, targets_WK: torch.Tensor | None = None) -> list[Run]:
        of_generic, of_lora, _ = self.shared_steps()
        generic = self.plain_run("generic", self.generic_K, steps=of_generic)
        loras = [
            self.adapter_run(f"lora-{g:03d}", weights_K, of_lora, begins_from=generic.name)
            for g, weights_K in enumerate(self.mixtures_GK)
        ]
        return [generic, *loras]

    def adapter_run(self, name: str, domain_weights_K: torch.Tensor, steps: int, *, begins_from: str) -> Run:
        """A run of a LoRA or its gates: PHATGOOSE's has 6% of warm-up, then a constant rate."""
        run = self.plain_run(name, domain_weights_K, steps=steps, begins_from=begins_from)
        training = replace(
            run.training,
            learning_rate=self.lora_learning_rate,
            warmup_steps=steps * 6 // 100,
            final_learning_rate_fraction=1.0,
        )
        return replace(run, training=training)

    def begin(self, run: Run, begun: Trained | None = None) -> Learner:
        if not run.name.startswith("lora-"):
            return super().begin(run, begun)
        assert begun is not None, "a LoRA begins from the generic model"
        number = int(run.name.removeprefix("lora-"))
        seed = (run.training.seed << 32) + number  # alike LoRAs would begin alike
        module = lora_model(self.base(self.plain_model(begun)), rank=self.lora_rank, seed=seed)
        names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
        return ModuleLearner(module, run.training, rates=dict.fromkeys(names, run.training.learning_rate))

    def module_of(self, trained: Trained) -> nn.Module:
        """The module of a trained LoRA, or of its gates, which is the same for all domain weights."""
        [module] = trained.instantiate(self.generic_K[None])
        assert isinstance(module, nn.Module)
        return module

    def base(self, model_P: torch.Tensor) -> nn.Module:
        """The backbone with these parameters."""
        flat = build_backbone(self.soup.backbone, seed=0, device=self.device)
        flat.params_P.copy_(model_P)
        return flat.module

    @cached_property
    def linear_shapes(self) -> list[tuple[int, int]]:
        """I and O of each linear layer that has LoRAs, from the backbone built without memory."""
        with torch.device("meta"):
            module = build_backbone(self.soup.backbone, seed=0, device="meta").module
        return [sizes(linear) for _, linear in linears(module)]

    @property
    def lora_size(self) -> int:
        """Parameters of one LoRA."""
        return sum(self.lora_rank * (inputs + outputs) for inputs, outputs in self.linear_shapes)

    @property
    def gate_size(self) -> int:
        """Parameters of one expert's gates, or of its prototypes: a vector for each linear layer."""
        return sum(inputs for inputs, _ in self.linear_shapes)

    def run_flops(self, run: Run) -> float:
        """FLOPs of a run. A frozen backbone's weights need no gradient, which is a third of its products with them.

        What the first layer saves beyond that, whose input needs none either, is not subtracted.
        """
        setup, tokens = self.setup(run), run.tokens
        if run.name == "generic":
            return run.training.steps * whole_step_flops(setup)
        of_lora = 3 * 2 * self.lora_size
        frozen = step_flops(setup) / (run.training.batch_size * run.training.sequence_length)
        frozen -= 2 * self.size.matmul_params
        return tokens * (frozen + of_lora) + ADAM_FLOPS * self.lora_size * run.training.steps

    def pool_cost(self, *, num_params: int, pretrained_size: int, routing_flops: float) -> Cost:
        """The cost of the runs, with a served model of `num_params` and the FLOPs of a token in its routed layers."""
        runs = self.runs()
        return Cost(
            specialist_size=num_params,
            pretrained_size=pretrained_size,
            pretraining_tokens=sum(run.tokens for run in runs),
            pretraining_flops=sum(map(self.run_flops, runs)),
            specialist_flops=0,
            token_flops=token_flops(self.size, self.training.sequence_length) + routing_flops,
        )


def linears(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The linear layers that have LoRAs, with their names: all but the output layer."""
    from transformers.pytorch_utils import Conv1D

    output = module.get_output_embeddings()
    for name, part in module.named_modules():
        if type(part) in (nn.Linear, Conv1D) and part is not output:
            yield name, part


def sizes(linear: nn.Module) -> tuple[int, int]:
    """I and O."""
    rows, columns = linear.weight.shape
    return (columns, rows) if isinstance(linear, nn.Linear) else (rows, columns)


def lora_model(base: nn.Module, *, rank: int, seed: int) -> nn.Module:
    """The model with one new LoRA beside each linear layer, as PEFT's model; only the LoRA needs gradients."""
    from peft import LoraConfig, get_peft_model  # deptry: ignore[DEP004]

    layers = dict(linears(base))
    config = LoraConfig(
        r=rank,
        lora_alpha=1,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        fan_in_fan_out=not any(isinstance(linear, nn.Linear) for linear in layers.values()),
        target_modules=sorted(layers),
    )
    with torch.random.fork_rng(devices=[]), quiet_peft():
        torch.manual_seed(seed)
        return get_peft_model(base, config)


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Without the warnings that are of no use to a user of ours: of names that PEFT will change, and of Arrow's router,
    whose configuration PEFT corrects.
    """
    with warnings.catch_warnings():
        for of_peft in ("`is_gradient_checkpointing` is deprecated", "fan_in_fan_out is set to False"):
            warnings.filterwarnings("ignore", message=of_peft)
        yield


def loras_of(module: nn.Module) -> dict[str, nn.Module]:
    """PEFT's layers of a model that :func:`lora_model` made, by the name of the linear layer in the base."""
    inner = module.get_base_model()
    return {name: part for name, part in inner.named_modules() if hasattr(part, "lora_A")}
