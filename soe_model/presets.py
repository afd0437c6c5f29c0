"""Settings of a soup and its training, and presets: sizes and rates that belong together.

The paper gives the sizes (Table 2; for the 335 M model of Figure 5 only the number of experts), N = 128 (section 3),
s = 4, and in Table 3 batch, length, rates, warm-up steps, betas and clip. It does not say, and we chose: the shape of
the warm-up and the schedule after it, the router's width, the initial values of router and experts, Adam's epsilon, the
shape of the 335 M model (GPT-2 medium's), and that one norm over shared, experts and router together is clipped.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from soe_model.bounds import finite_positive, require, whole
from soe_model.model.backbone import gpt2_config
from soe_model.model.router import Router
from soe_model.optimizers import AdamConfig, check_name
from storage_schema.errors import UserError


@dataclass(frozen=True, kw_only=True)
class SoupConfig:
    """The architecture of a soup."""

    backbone: dict[str, Any]
    """A Hugging Face configuration with its ``model_type``."""
    num_experts: int
    """N; 0 is the generic twin."""
    num_domains: int
    router_hidden: int = 128
    """Hidden units. The paper says only that the router is a two-layer MLP; this number and the next three are ours."""
    router_input_scale: float = 1.0
    router_output_scale: float = 1.0
    """About the standard deviation of the coefficients at the start (:class:`~soe_model.model.router.Router`)."""
    expert_std: float = 0.0
    """Standard deviation of the experts' parameters at the start; 0: every instance begins at `shared`."""
    expert_rank: int | None = None
    """r: an expert has a low-rank product for each matrix (section 2.6); None: full experts."""

    def __post_init__(self) -> None:
        kinds = {"backbone": dict} | dict.fromkeys(("num_experts", "num_domains", "router_hidden"), int)
        for name, kind in kinds.items():
            if not isinstance(getattr(self, name), kind):
                raise UserError(f"{name} is {getattr(self, name)!r:.40}; it must be of type {kind.__name__}.")
        require(self, ("num_experts",), lambda n: n >= 0, "0 (the generic twin) or more")
        require(self, ("num_domains", "router_hidden"), whole, "at least 1")
        require(self, ("router_input_scale",), finite_positive, "positive and finite")
        at_start = ("router_output_scale", "expert_std")
        require(self, at_start, lambda scale: 0 <= scale < math.inf, "at least 0 and finite")
        if self.num_experts and not any(getattr(self, name) for name in at_start):
            raise UserError(
                f"{' and '.join(at_start)} are both 0: coefficients and experts would all begin at 0, and none would "
                "ever get a gradient. Make one of them positive."
            )

    def new_router(self, seed: int, centroids_KD: torch.Tensor | None) -> Router:
        """The soup's router at the start: the same seed gives the same one, whatever was drawn before."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Router(
                self.num_domains,
                self.num_experts,
                hidden=self.router_hidden,
                input_scale=self.router_input_scale,
                output_scale=self.router_output_scale,
                centroids_KD=centroids_KD,
            )


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a soup is trained. The defaults are those of Table 3."""

    steps: int
    batch_size: int = 128
    """Sequences per step, over all ranks."""
    sequence_length: int = 1024
    mixtures_per_step: int = 1
    """W; Algorithm 2 has 1."""
    train_generic: bool = False
    """Each step also trains the generic instance, on all of its tokens: a second pass, and one instance more."""
    support_size: int = 4
    """s: the number of domains in a mixture (section 2.4)."""
    learning_rate: float = 1e-4
    """Learning rate of the shared parameters; the next two are of the experts and the router."""
    expert_learning_rate: float = 1e-4
    router_learning_rate: float = 1e-4
    warmup_steps: int = 2000
    """Steps in which all rates rise linearly to their peak; 0: none."""
    final_learning_rate_fraction: float = 1.0
    """Share of the peak rate that is left at the last step; a cosine leads there from the end of the warm-up. 1 keeps
    the rate constant. The paper gives the warm-up (Table 3) and no schedule after it; constant is our choice."""
    gradient_clip: float = 0.1
    """Largest norm of the gradient (Table 3). The paper does not say of which gradient; here it is the exact norm over
    shared, experts and router together."""
    adam: AdamConfig = field(default_factory=AdamConfig)
    optimizer: str = "adam"
    """Optimizer of the experts, one of soe_model.optimizers.OPTIMIZERS. Shared parameters and router use exact Adam."""
    micro_batch_size: int | None = None
    """Sequences in one pass on one rank; None: all that it has of a mixture (of the step, for the generic instance).
    The last pass takes what is left. Give a divisor, or `compile_model` compiles that size too."""
    compile_model: bool = False
    """Compile the backbone and its loss (torch.compile)."""
    deterministic: bool = False
    """Use only kernels that reproduce every bit; an operation that has none is an error."""
    seed: int = 0

    def __post_init__(self) -> None:
        sizes = ("steps", "batch_size", "sequence_length", "mixtures_per_step", "support_size")
        require(self, sizes, whole, "at least 1")
        if self.batch_size % self.mixtures_per_step:
            raise UserError(
                f"batch_size {self.batch_size} is not a multiple of mixtures_per_step {self.mixtures_per_step}."
            )
        check_name(self.optimizer)
        require(self, ("micro_batch_size",), lambda size: size is None or size >= 1, "at least 1")
        rates = ("learning_rate", "expert_learning_rate", "router_learning_rate", "gradient_clip")
        require(self, rates, finite_positive, "positive and finite")
        require(self, ("final_learning_rate_fraction",), lambda share: 0 <= share <= 1, "between 0 and 1")
        require(self, ("warmup_steps",), lambda steps: steps >= 0, "at least 0")
        if self.warmup_steps > self.steps:
            raise UserError(
                f"warmup_steps is {self.warmup_steps} and the run has {self.steps} steps: it would end before its "
                f"learning rate is reached. Give warmup_steps={self.steps // 3}, a third of the run, or more steps."
            )

    def described(self) -> dict[str, Any]:
        """As records have it: without ``train_generic`` where it is off, as earlier releases wrote it."""
        return {name: value for name, value in asdict(self).items() if name != "train_generic" or value}

    def over(self, steps: int) -> TrainingConfig:
        """The same training over other steps; over fewer, the warm-up is a third of them at most."""
        shorter = min(self.warmup_steps, steps // 3)
        return replace(self, steps=steps, warmup_steps=shorter if steps < self.steps else self.warmup_steps)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The shape of a backbone and a training that suits it; the vocabulary comes from the store."""

    shape: dict[str, Any]
    """Arguments of :func:`gpt2_config` other than the vocabulary."""
    num_experts: int
    training: TrainingConfig
    generic_learning_rate: float
    """The learning rate that is best for the generic twin, so that the soup is compared with a twin at its best."""
    router_hidden: int = 128
    router_input_scale: float = 1.0
    router_output_scale: float = 1.0
    """With ``num_experts``; see :meth:`output_scale`."""
    expert_std: float = 0.0

    def output_scale(self, num_experts: int) -> float:
        """The router's, with so many experts: at the start sum |coefficient|, which the rates suit, stays the same."""
        return self.router_output_scale * self.num_experts / (num_experts or self.num_experts)

    def described(self) -> dict[str, Any]:
        """As records have it."""
        return asdict(self) | {"training": self.training.described()}

    def backbone(self, *, vocab_size: int, sequence_length: int, end_of_text: int) -> dict[str, Any]:
        return gpt2_config(
            vocab_size=vocab_size, sequence_length=sequence_length, end_of_text=end_of_text, **self.shape
        )


def tiny() -> Preset:
    """Trains in minutes on two CPU cores: the preset of ``make demo``, which takes sparser mixtures and 32 experts.

    A soup gains where its model is small for its text. With a vocabulary of 2048 tokens this one has 95,104 parameters
    and reads 78 tokens for each; at width 64 with 14 it gained next to nothing.
    """
    return Preset(
        # GPT-2's 0.02 suits widths of about 1000. At width 64 a model that starts so stays on its first plateau
        # (unigram frequencies) for hundreds of steps; how many depends on the seed.
        shape=dict(embedding_size=32, num_layers=2, num_heads=2, initializer_range=0.1),
        num_experts=16,
        generic_learning_rate=1.5e-2,
        # Adam moves an instance (1 + sum |coefficient|) times as far as the rates say. So the coefficients start
        # small, and the experts have a low rate.
        router_output_scale=0.3,
        training=TrainingConfig(
            steps=3600,
            batch_size=16,
            sequence_length=128,
            mixtures_per_step=8,
            support_size=8,
            learning_rate=1e-2,
            expert_learning_rate=4e-3,
            router_learning_rate=1e-3,
            warmup_steps=300,
            final_learning_rate_fraction=0.05,
            gradient_clip=1.0,
        ),
    )


def small() -> Preset:
    """1.3 million parameters (with a vocabulary of 4096 tokens): an afternoon on a CPU, or minutes on a GPU."""
    base = tiny()
    training = replace(
        base.training,
        steps=5000,
        batch_size=32,
        learning_rate=3e-3,
        expert_learning_rate=7e-4,
        warmup_steps=200,
    )
    return replace(
        base,
        shape=dict(embedding_size=128, num_layers=4, num_heads=4),
        generic_learning_rate=3e-3,
        training=training,
    )


def _paper(
    embedding_size: int, hidden_size: int, num_layers: int, num_heads: int, *, num_experts: int = 128
) -> Preset:
    return Preset(
        shape=dict(
            embedding_size=embedding_size, hidden_size=hidden_size, num_layers=num_layers, num_heads=num_heads
        ),
        num_experts=num_experts,
        generic_learning_rate=3e-4,
        # The paper does not say how its router starts. At 1, the absolute coefficients of 128 experts would add up to
        # 36, and an instance would move 37 times as far as the rates say; so they add up to about 2.
        router_output_scale=7 / num_experts,
        training=TrainingConfig(steps=1_024_000),
    )


PRESETS = {
    "tiny": tiny,
    "small": small,
    "paper-35m": lambda: _paper(512, 2048, 6, 8),
    "paper-55m": lambda: _paper(512, 2048, 12, 8),
    "paper-110m": lambda: _paper(768, 3072, 12, 12),
    "paper-335m": lambda: _paper(1024, 4096, 24, 16, num_experts=32),
}


def preset(name: str) -> Preset:
    """The preset of that name. Raises ValueError, listing the names, if there is none."""
    if name not in PRESETS:
        raise UserError(f"no preset {name!r}; there are {', '.join(PRESETS)}.")
    return PRESETS[name]()
