"""Measures what decides the cost of a backbone, without allocating it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from soe_model.model.backbone import hugging_face_config
from storage_schema.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """The numbers of a backbone that decide its cost."""

    num_params: int
    """P; tied parameters count once."""
    matmul_params: int
    """Parameters that every token is multiplied with: the matrices, without tables that are only looked up."""
    matrices: tuple[tuple[int, int], ...]
    """Shapes of the two-dimensional parameters."""
    num_layers: int
    embedding_size: int
    hidden_size: int
    """Width of the MLP."""
    gated: bool
    """Whether the MLP is gated, as in Llama."""
    vocab_size: int


def model_size(backbone: dict[str, Any]) -> ModelSize:
    """Build the backbone on torch's meta device, which takes no memory, and measure it.

    Raises ValueError for a configuration that transformers does not know or cannot build.
    """
    from transformers import AutoModelForCausalLM

    config = hugging_face_config(backbone)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # each architecture raises its own errors
        kind = config.model_type
        raise UserError(
            f"transformers cannot build the backbone of model_type {kind!r}: {error!r:.300}"
        ) from error
    parameters = dict(model.named_parameters())
    tables = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    tables.discard(
        id(getattr(model.get_output_embeddings(), "weight", None))
    )  # a tied table is multiplied with too
    names = ("intermediate_size", "n_inner", "ffn_dim")
    hidden = next((size for name in names if (size := getattr(config, name, None))), 4 * config.hidden_size)
    return ModelSize(
        num_params=sum(p.numel() for p in parameters.values()),
        matmul_params=sum(p.numel() for p in parameters.values() if p.dim() > 1 and id(p) not in tables),
        matrices=tuple(tuple(p.shape) for p in parameters.values() if p.dim() == 2),
        num_layers=config.num_hidden_layers,
        embedding_size=config.hidden_size,
        hidden_size=hidden,
        gated=any("gate_proj" in name or "gate_up_proj" in name for name in parameters),
        vocab_size=config.vocab_size,
    )
