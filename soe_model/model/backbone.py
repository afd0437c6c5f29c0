"""The backbone: the small model that a soup makes instances of, any causal language model of transformers.

Its parameters lie in one flat vector. The GPT-2 sizes of the paper's Table 2 are in soe_model/presets.py. Importing
transformers takes seconds, so only the functions that need it do.

Legend: B sequences, L tokens in a sequence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from soe_model.model.flat_module import FlatModule
from storage_schema.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def gpt2_config(
    *,
    vocab_size: int,
    sequence_length: int,
    embedding_size: int,
    num_layers: int,
    num_heads: int,
    hidden_size: int | None = None,
    initializer_range: float = 0.02,
    end_of_text: int = 0,
) -> dict[str, Any]:
    """A GPT-2 style transformer (Table 2) as a Hugging Face configuration: tied embeddings, no dropout.

    Args:
        hidden_size: width of the MLP; by default 4 x `embedding_size`.
        initializer_range: standard deviation of the weights at the start; the default is GPT-2's.
        end_of_text: id of the token that ends a passage; a generation starts with it.

    Raises ValueError if `num_heads` does not divide `embedding_size`.
    """
    if embedding_size % num_heads:
        raise UserError(f"embedding_size {embedding_size} is not a multiple of num_heads {num_heads}.")
    return {
        "model_type": "gpt2",
        "vocab_size": vocab_size,
        "n_positions": sequence_length,
        "n_embd": embedding_size,
        "n_inner": hidden_size or 4 * embedding_size,
        "n_layer": num_layers,
        "n_head": num_heads,
        "initializer_range": initializer_range,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "tie_word_embeddings": True,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
    }


def hugging_face_config(backbone: dict[str, Any]) -> PretrainedConfig:
    """The configuration object of a backbone given as a dict with its ``model_type``.

    Raises ValueError for a model type that transformers does not know, and for settings that may name code elsewhere:
    a soup's files describe its backbone, and a file may only choose among the code that is installed.
    """
    from transformers import AutoConfig

    settings = dict(backbone)
    _refuse_code(settings)
    model_type = settings.pop("model_type", None)
    if model_type is None:
        raise UserError("a backbone needs a model_type, such as gpt2 or llama.")
    try:
        return AutoConfig.for_model(model_type, **settings)
    except Exception as error:  # each architecture raises its own errors, and not all are ValueErrors
        raise UserError(f"transformers refuses the backbone of model_type {model_type!r}: {error}") from error


def _refuse_code(settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        if isinstance(value, dict):
            _refuse_code(value)
        chooses = name in ("attn_implementation", "_attn_implementation", "experts_implementation")
        elsewhere = chooses and value is not None and (not isinstance(value, str) or "/" in value)
        if elsewhere or name == "auto_map":
            raise UserError(
                f"the backbone's {name} is {value!r:.100}: it may name code elsewhere. Leave it out."
            )


def build_backbone(
    backbone: dict[str, Any],
    *,
    seed: int,
    device: str | torch.device = "cpu",
    instances: int = 1,
    multiple: int = 1,
) -> FlatModule:
    """The backbone with its architecture's own initial values, which the seed decides on every rank alike.

    `instances` and `multiple` are explained at :class:`FlatModule`.
    """
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(hugging_face_config(backbone), trust_remote_code=False)
    model.config.use_cache = False
    fuse_gelu(model)
    model = model.to(device=device, dtype=torch.float32).train()
    return FlatModule(model, instances=instances, multiple=multiple)


@torch.no_grad()
def check_causal(model: torch.nn.Module) -> None:
    """Let the model read two tokens, and then another second one. It stays as it is, in training mode.

    Raises:
        ValueError: it cannot be run; or logits change with a later token, as those of an encoder such as BERT do
            without ``is_decoder``. It would learn to copy its targets.
    """
    kind, device = model.config.model_type, next(model.parameters()).device
    pairs = torch.tensor([[0, 0], [0, 1]], device=device)
    model.eval()
    try:
        one_V, other_V = (model(input_ids=pair[None]).logits[0, 0] for pair in pairs)
    except (RuntimeError, MemoryError):
        raise  # such as one that says that memory is short
    except Exception as error:  # each architecture raises its own errors
        raise UserError(
            f"transformers cannot run the backbone of model_type {kind!r}: {error!r:.300}"
        ) from error
    model.train()
    if (one_V - other_V).abs().max() > 1e-5 * one_V.abs().max():
        raise UserError(
            f"the backbone of model_type {kind!r} reads later tokens too, and would learn to copy its targets. Take a "
            "causal model, or give is_decoder=true if it is an encoder that can be one."
        )


def fuse_gelu(model: torch.nn.Module) -> None:
    """Let PyTorch's kernel compute GPT-2's GELU in this model; transformers takes eight operations and keeps each.

    It is the same function but for rounding. The configuration, which is written to files, stays as it is.
    """
    from transformers.activations import NewGELUActivation

    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(parent, name, torch.nn.GELU(approximate="tanh"))


def token_losses(model: torch.nn.Module, tokens_BL1: torch.Tensor) -> torch.Tensor:
    """Loss of each next token in nats, float32 [B, L]; `tokens_BL1` is int64 [B, L + 1], on any device."""
    tokens_BL1 = tokens_BL1.to(next(model.parameters()).device)
    return losses_of_logits(model(input_ids=tokens_BL1[:, :-1]).logits, tokens_BL1)


def losses_of_logits(logits_BLV: torch.Tensor, tokens_BL1: torch.Tensor) -> torch.Tensor:
    """The same from the logits of all tokens but the last of each sequence; V words."""
    targets = tokens_BL1[:, 1:]
    losses = F.cross_entropy(logits_BLV.flatten(0, 1).float(), targets.flatten(), reduction="none")
    return losses.view(targets.shape)
