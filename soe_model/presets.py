"""Sizes and hyper-parameters that belong together. A preset is a function; nothing else reads its name.

The paper's sizes are Table 2 (and the 335 M model of Figure 5), its hyper-parameters Table 3.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from soe_model.backbone import gpt2_config
from soe_model.optimizers import AdamConfig, check_name
from storage_schema.errors import UserError


@dataclass(frozen=True, kw_only=True)
class SoupConfig:
    """What the bank is."""

    backbone: dict[str, Any]
    """A Hugging Face configuration with its ``model_type``."""
    num_experts: int
    """N; 0 is the generic twin."""
    num_domains: int
    router_hidden: int = 128
    router_input_scale: float = 1.0
    router_output_scale: float = 1.0
    expert_std: float = 0.0
    expert_rank: int | None = None
    """r: experts are low-rank products of each matrix (section 2.6); None: full experts."""

    def __post_init__(self) -> None:
        for name, kind in (
            ("backbone", dict),
            ("num_experts", int),
            ("num_domains", int),
            ("router_hidden", int),
        ):
            if not isinstance(getattr(self, name), kind):
                raise UserError(f"{name} is {getattr(self, name)!r:.40}; it must be of type {kind.__name__}.")
        if self.num_experts < 0:
            raise UserError(f"num_experts is {self.num_experts}; it must be 0 (the generic twin) or more.")
        if self.num_domains < 1:
            raise UserError(f"num_domains is {self.num_domains}; it must be at least 1.")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How it is trained. Learning rates rise linearly over `warmup_steps`, then follow a cosine."""

    steps: int
    batch_size: int = 128
    """Sequences a step, over all ranks."""
    sequence_length: int = 1024
    mixtures_per_step: int = 1
    """W; Algorithm 2 is 1."""
    support_size: int = 4
    """s: domains in a mixture (section 2.4)."""
    learning_rate: float = 1e-4
    """Of `shared`."""
    expert_learning_rate: float = 1e-4
    router_learning_rate: float = 1e-4
    warmup_steps: int = 2000
    final_learning_rate_fraction: float = 1.0
    """Share of the peak rate left at the last step; 1 keeps it constant, as the paper does."""
    gradient_clip: float = 0.1
    """Largest global norm of the gradient (Table 3); exact, over shared, experts and router together."""
    adam: AdamConfig = field(default_factory=AdamConfig)
    optimizer: str = "adam"
    """Of the experts; one of soe_model.optimizers.OPTIMIZERS. Shared parameters and router have exact Adam."""
    micro_batch_size: int | None = None
    """Sequences of one forward and backward pass on one rank; None: as many as a mixture has there."""
    compile_model: bool = False
    """Compile the backbone and its loss (torch.compile)."""
    deterministic: bool = False
    """Only bitwise reproducible kernels, an error where there is none."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "sequence_length", "mixtures_per_step", "support_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.batch_size % self.mixtures_per_step:
            raise UserError(
                f"batch_size {self.batch_size} is not a multiple of mixtures_per_step {self.mixtures_per_step}."
            )
        check_name(self.optimizer)
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            raise UserError(f"micro_batch_size is {self.micro_batch_size}; it must be at least 1.")
        for name in ("learning_rate", "expert_learning_rate", "router_learning_rate", "gradient_clip"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be positive.")


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A backbone's shape and the training that suits it; the vocabulary comes from the store."""

    shape: dict[str, Any]
    """Arguments of :func:`gpt2_config` other than the vocabulary."""
    num_experts: int
    training: TrainingConfig
    generic_learning_rate: float
    """The generic twin's own best rate: the soup's would flatter or harm it."""
    router_hidden: int = 128
    router_output_scale: float = 1.0
    expert_std: float = 0.0

    def backbone(self, *, vocab_size: int, sequence_length: int, end_of_text: int) -> dict[str, Any]:
        return gpt2_config(
            vocab_size=vocab_size, sequence_length=sequence_length, end_of_text=end_of_text, **self.shape
        )


def tiny() -> Preset:
    """Trains in minutes on two CPU cores: the preset of ``make demo``."""
    return Preset(
        # GPT-2's 0.02 is for widths about 1000; at 64 such a start keeps a model on its first plateau (unigram
        # frequencies) for hundreds of steps, how many depends on the seed.
        shape=dict(embedding_size=64, num_layers=2, num_heads=2, initializer_range=0.08),
        num_experts=16,
        generic_learning_rate=1e-2,
        # Adam moves an instance (1 + sum |coefficient|) times as far as the rates say: so small coefficients at
        # the start, and a low rate for the experts.
        router_output_scale=0.3,
        training=TrainingConfig(
            steps=1600,
            batch_size=16,
            sequence_length=128,
            mixtures_per_step=8,
            support_size=8,
            learning_rate=5e-3,
            expert_learning_rate=7e-4,
            router_learning_rate=1e-3,
            warmup_steps=100,
            final_learning_rate_fraction=0.05,
            gradient_clip=1.0,
        ),
    )


def small() -> Preset:
    """A 1.3 M-parameter model (at 4096 tokens of vocabulary) for an afternoon on a CPU or minutes on a GPU."""
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


def _paper(embedding_size: int, hidden_size: int, num_layers: int, num_heads: int) -> Preset:
    return Preset(
        shape=dict(
            embedding_size=embedding_size, hidden_size=hidden_size, num_layers=num_layers, num_heads=num_heads
        ),
        num_experts=128,
        generic_learning_rate=3e-4,
        training=TrainingConfig(steps=1_024_000),
    )


PRESETS = {
    "tiny": tiny,
    "small": small,
    "paper-35m": lambda: _paper(512, 2048, 6, 8),
    "paper-55m": lambda: _paper(512, 2048, 12, 8),
    "paper-110m": lambda: _paper(768, 3072, 12, 12),
    "paper-335m": lambda: _paper(1024, 4096, 24, 16),
}


def preset(name: str) -> Preset:
    """The preset of that name. Raises ValueError listing the names."""
    if name not in PRESETS:
        raise UserError(f"no preset {name!r}; there are {', '.join(PRESETS)}.")
    return PRESETS[name]()
