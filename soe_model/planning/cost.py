"""What a pretraining run needs before it starts: memory of a worker, size of a checkpoint, time of a step.

Counted exactly, from the shapes the trainer allocates: parameters, state, instances, communication buffers.
Estimated: activations (:func:`activation_bytes`) and the process itself. Predicted by a model of bytes and
FLOPs: the step's time (:func:`step_time`).

Legend: W mixtures of a step, V of them on one rank at most, N experts, P parameters of one model, p of them on a
rank, Q numbers of a low-rank expert's factors, n ranks, L tokens in a sequence. Bytes and seconds throughout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from soe_model.model.backbone import hugging_face_config
from soe_model.model.flat_module import ParameterSlot
from soe_model.model.low_rank import factor_slots
from soe_model.model.sharding import Sharding, owned_mixtures
from soe_model.optimizers import MOMENTS, bytes_of
from soe_model.optimizers.tile import CACHE_ELEMENTS, FUSED_ELEMENTS
from soe_model.planning.devices import Device
from soe_model.presets import SoupConfig, TrainingConfig
from storage_schema.errors import UserError

FLOAT = 4
ADAM_STATE = 3 * FLOAT
"""A parameter and its two moments in exact Adam."""
TILE = {"cuda": FUSED_ELEMENTS["cuda"], "cpu": CACHE_ELEMENTS}
"""Elements of the bank that an optimizer works on at a time, at most."""
PROCESS = {"cuda": 1.0e9, "cpu": 0.6e9}
"""Held before the first tensor, in the memory that is counted: the CUDA context and its libraries' work space; or
the interpreter with torch and transformers. Assumed."""


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """What of a backbone decides its cost."""

    num_params: int
    """P; tied parameters count once."""
    matmul_params: int
    """Those that every token is multiplied with: the matrices, without tables that are only looked up."""
    matrices: tuple[tuple[int, int], ...]
    """Shapes of the two-dimensional parameters."""
    num_layers: int
    embedding_size: int
    hidden_size: int
    """Width of the MLP."""
    gated: bool
    """The MLP is gated, as Llama's."""
    gelu_new: bool
    """The activation is transformers' own formula of GELU, which eagerly keeps each step of it."""
    vocab_size: int


def model_size(backbone: dict[str, Any]) -> ModelSize:
    """Build the backbone on torch's meta device, which takes no memory, and measure it.

    Raises ValueError for a configuration that transformers does not know or accept.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoModelForCausalLM

    try:
        config = hugging_face_config(backbone)
    except StrictDataclassError as error:
        raise UserError(f"the backbone is no configuration of a {backbone['model_type']}: {error}") from error
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    parameters = dict(model.named_parameters())
    tables = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    tables.discard(id(getattr(model.get_output_embeddings(), "weight", None)))  # tied: multiplied after all
    names = ("intermediate_size", "n_inner", "ffn_dim")
    hidden = next((size for name in names if (size := getattr(config, name, None))), 4 * config.hidden_size)
    activation = getattr(config, "activation_function", None) or getattr(config, "hidden_act", None)
    return ModelSize(
        num_params=sum(p.numel() for p in parameters.values()),
        matmul_params=sum(p.numel() for p in parameters.values() if p.dim() > 1 and id(p) not in tables),
        matrices=tuple(tuple(p.shape) for p in parameters.values() if p.dim() == 2),
        num_layers=config.num_hidden_layers,
        embedding_size=config.hidden_size,
        hidden_size=hidden,
        gated=any("gate_proj" in name or "gate_up_proj" in name for name in parameters),
        gelu_new=activation == "gelu_new",
        vocab_size=config.vocab_size,
    )


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A run to be priced: the settings that matter, on `num_workers` equal workers."""

    size: ModelSize
    soup: SoupConfig
    training: TrainingConfig
    num_workers: int = 1
    device_type: str = "cuda"
    """``cuda`` (bfloat16 compute) or ``cpu`` (float32)."""

    @property
    def width(self) -> int:
        """p, with the padding."""
        return Sharding(num_params=self.size.num_params, world_size=self.num_workers).width

    @property
    def owned(self) -> list[int]:
        """Instances of each rank: rank r has ceil((r + 1) W / n) - floor(r W / n)."""
        mixtures, ranks = self.training.mixtures_per_step, self.num_workers
        return [len(owned_mixtures(mixtures, rank, ranks)) for rank in range(ranks)]

    @property
    def factor_size(self) -> int:
        """Q; 0 for full experts. Raises ValueError if no matrix is larger than the rank."""
        rank = self.soup.expert_rank
        if rank is None:
            return 0
        layout = [ParameterSlot(name="", shape=shape, offset=0) for shape in self.size.matrices]
        return sum(slot.size for slot in factor_slots(layout, rank))

    @property
    def micro_batch(self) -> int:
        """Sequences of one pass: the setting, or all that a rank has of one mixture."""
        training = self.training
        most = min(
            training.batch_size // training.mixtures_per_step, -(-training.batch_size // self.num_workers)
        )
        return min(training.micro_batch_size or most, most)


def worker_memory(setup: Setup) -> dict[str, float]:
    """Bytes of the worker that needs most, by part. They are simply added: communication and activations do not
    meet, but an allocator does not always reuse the one for the other.
    """
    width, ranks, mixtures = setup.width, setup.num_workers, setup.training.mixtures_per_step
    most = max(setup.owned)
    elements = setup.soup.num_experts * width
    tile = min(elements, TILE[setup.device_type])
    work = FLOAT * (
        tile + (mixtures > 1) * width
    )  # one float32 tile of the bank, and the sum of the gradients
    if setup.soup.expert_rank:
        work = FLOAT * setup.soup.num_experts * setup.factor_size  # the gradient of all factors
    return {
        "experts and optimizer": experts_bytes(setup),
        "shared, router and Adam": ADAM_STATE * width + (ADAM_STATE + FLOAT) * router_params(setup.soup),
        "instances and gradients": 2 * FLOAT * most * ranks * width,
        "communication": communication_bytes(setup),
        "update": work,
        "activations": activation_bytes(setup),
        "process": PROCESS[setup.device_type],
    }


def communication_bytes(setup: Setup) -> float:
    """Every mixture's columns of this rank, and what is sent and received; 0 on one rank.

    Low-rank experts instead need all gradients whole on every rank: as they were received, and (of several mixtures)
    in order.
    """
    ranks, mixtures, owned = setup.num_workers, setup.training.mixtures_per_step, setup.owned
    if ranks == 1:
        return 0
    columns = sum(owned) + ranks * max(owned)
    if setup.soup.expert_rank:
        columns = max(columns, (1 + (mixtures > 1)) * ranks * mixtures)
    return FLOAT * setup.width * (mixtures + columns)


def experts_bytes(setup: Setup) -> float:
    """A worker's share of the experts with their optimizer; all of them if they are of low rank, in exact Adam."""
    if setup.soup.expert_rank:
        return ADAM_STATE * setup.soup.num_experts * setup.factor_size
    name = setup.training.optimizer
    held, _ = bytes_of(name)
    factored = name in MOMENTS and MOMENTS[name].factored_second and setup.soup.num_experts > 0
    return (held * setup.soup.num_experts + FLOAT * factored) * setup.width  # the columns' sums of squares


def router_params(soup: SoupConfig) -> int:
    """Of the two-layer MLP with its biases."""
    hidden = soup.router_hidden
    return hidden * (soup.num_domains + 1) + soup.num_experts * (hidden + 1)


def state_bytes(setup: Setup) -> float:
    """A worker's state, and so the copy in CPU memory that a checkpoint is written from."""
    return experts_bytes(setup) + ADAM_STATE * (setup.width + router_params(setup.soup))


def checkpoint_bytes(setup: Setup) -> float:
    """On disk, of all ranks; what every rank holds is written once."""
    once = ADAM_STATE * router_params(setup.soup)
    experts = experts_bytes(setup)
    if not setup.soup.expert_rank:
        experts *= setup.num_workers
    return experts + ADAM_STATE * setup.width * setup.num_workers + once


def soup_bytes(setup: Setup) -> float:
    """On disk, of the finished soup: shared parameters, experts (or their factors) and router in float32."""
    of_expert = setup.factor_size or setup.size.num_params
    return FLOAT * (setup.size.num_params + setup.soup.num_experts * of_expert + router_params(setup.soup))


def run_bytes(setup: Setup, checkpoints_kept: int) -> float:
    """On disk, of a run: the checkpoints that are kept, the one being written beside them, and the soup."""
    return (checkpoints_kept + 1) * checkpoint_bytes(setup) + soup_bytes(setup)


def activation_bytes(setup: Setup) -> float:
    """What one micro-batch keeps for its backward pass; an estimate.

    A layer, after Korthikanti et al. 2022 (arXiv 2205.05198, section 4.1) without dropout and with fused
    attention, which keeps no scores: inputs of the attention's and MLP's matrices, queries, keys and values,
    6 h values; inputs of two norms, 2 h; and of the MLP of width f, 2 f (4 f if gated). Their 34 h bytes in 16 bits
    (f = 4 h) are these and two masks. Autocast keeps the norms' inputs in float32. ``gelu_new`` is written
    in steps, and unless it is compiled each is kept: 5 f values, three of them float32 in any case.

    A logit costs 12 bytes at the peak: its log-softmax and two gradients in float32. Autocast also keeps the
    matrices in bfloat16.
    """
    size, cuda = setup.size, setup.device_type == "cuda"
    number = 2 if cuda else FLOAT
    attention = (6 * number + 2 * FLOAT) * size.embedding_size
    if size.gelu_new and not setup.training.compile_model:
        mlp = (2 * number + 3 * FLOAT) * size.hidden_size
    else:
        mlp = (4 if size.gated else 2) * number * size.hidden_size
    of_token = size.num_layers * (attention + mlp) + 12 * size.vocab_size
    tokens = setup.micro_batch * setup.training.sequence_length
    return tokens * of_token + (number * size.matmul_params if cuda else 0)


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Predicted seconds; None where the model has no number."""

    backbone: float | None
    bank: float | None

    @property
    def ratio(self) -> float | None:
        """Tokens a second of the soup over those of its plain twin, whose sending of gradients costs the same."""
        if self.backbone is None or self.bank is None:
            return None
        return self.backbone / (self.backbone + self.bank)


def step_flops(setup: Setup) -> float:
    """Of the forward and backward passes of one step: ``6 x matmul parameters + 12 layers h L`` a token (PaLM)."""
    size, training = setup.size, setup.training
    attention = 12 * size.num_layers * size.embedding_size * training.sequence_length
    return (6 * size.matmul_params + attention) * training.batch_size * training.sequence_length


def step_time(setup: Setup, device: Device, *, mfu: float | None = None) -> StepTime:
    """Backbone: FLOPs over what is reached of the peak. Bank: bytes moved over the bandwidth.

    Kernels reach 0.8 to 0.9 of a copy's bandwidth, which the bank's time leaves out. Low-rank experts cost FLOPs
    rather than bytes: no time of theirs is predicted.
    """
    mfu, ranks = mfu or device.mfu, setup.num_workers
    backbone = bank = None
    if device.peak_flops and mfu:
        backbone = step_flops(setup) / (ranks * device.peak_flops * mfu)
    if device.bandwidth and not setup.soup.expert_rank:
        _, moved = bytes_of(setup.training.optimizer)
        bank = moved * setup.soup.num_experts * setup.width / device.bandwidth
    return StepTime(backbone=backbone, bank=bank)
