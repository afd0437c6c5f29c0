"""A backbone that the user describes, completed from the store and the sequence length."""

from __future__ import annotations

from typing import Any

from soe_model.model.backbone import hugging_face_config
from storage_schema.errors import UserError


def custom_backbone(
    given: dict[str, Any], *, vocab_size: int, sequence_length: int, end_of_text: int
) -> dict[str, Any]:
    """A Hugging Face configuration, completed with everything that a run needs.

    Unless given, the vocabulary is the store's, the positions are the sequence length, generation begins and ends with
    the store's end of text, and dropout is 0 (because a resumed run would draw other random numbers).

    Raises:
        ValueError: no model_type or an unknown one, a vocabulary smaller than the store's, too few positions.
    """
    # Slow to import, and rarely needed: most runs name a preset.
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    default = hugging_face_config(given)
    if given["model_type"] not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UserError(
            f"backbone has model_type {given['model_type']!r}, which is no causal language model."
        )
    positions = default.attribute_map.get("max_position_embeddings", "max_position_embeddings")
    completed: dict[str, Any] = {
        "vocab_size": vocab_size,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
    }
    if hasattr(default, positions) and "max_position_embeddings" not in given:
        completed[positions] = sequence_length
    completed |= {
        name: 0.0 for name, value in vars(default).items() if "drop" in name and isinstance(value, float)
    }
    if getattr(default, "pad_token_id", None) is not None:
        completed["pad_token_id"] = None  # an embedding with a padding token never learns that token
    completed |= given
    config = hugging_face_config(completed)
    dropout = [name for name, value in vars(config).items() if "drop" in name and value]
    if dropout:
        raise UserError(
            f"backbone has {dropout[0]} {getattr(config, dropout[0])}: a resumed run, or one of another number of "
            "workers, would draw other random numbers. Leave it out."
        )
    if config.vocab_size < vocab_size:
        raise UserError(
            f"backbone has vocab_size {config.vocab_size}; the store's tokenizer has {vocab_size} tokens. Give at "
            "least so many, or leave it out."
        )
    there = getattr(config, positions, None)
    if there is not None and there < sequence_length:
        raise UserError(
            f"backbone has {positions} {there}; sequence_length is {sequence_length}. Give at least so many, leave "
            "it out, or lower sequence_length."
        )
    return completed


def check_special_tokens(backbone: dict[str, Any], *, vocab_size: int) -> None:
    """Raise ValueError unless the tokens that begin and end a text are the store's, whose tokenizer specialists get."""
    for name in ("bos_token_id", "eos_token_id"):
        if type(backbone[name]) is not int or not 0 <= backbone[name] < vocab_size:
            raise UserError(
                f"backbone has {name} {backbone[name]!r}; it must be one of the store's {vocab_size} tokens. Leave it "
                "out: it is then the store's end of text."
            )
