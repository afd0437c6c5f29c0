"""A specialist as a Hugging Face directory that plain transformers loads, with its card and its recipe.

Legend: P parameters of one model.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from soe_model.files.soup import SoupOfExperts
from soe_model.model.flat_module import unflatten
from soe_model.specialists.model_card import model_card
from soe_model.specialists.recipe import (
    Recipe,
    check_recipe,
    check_tensors,
    instance_of,
    tensors_digest,
)
from storage_schema.lock import in_turn
from storage_schema.manifest import (
    Manifest,
    StoreError,
    canonical_json,
    manifest_name,
    verify_files,
)
from storage_schema.stage import open_stage

MODEL = "model.safetensors"
CARD = "README.md"


def write_specialist(
    soup: SoupOfExperts,
    folder: Path,
    recipe: Recipe,
    instance_P: torch.Tensor,
    *,
    report: Mapping[str, Any] | None = None,
    replace: bool | None = False,
) -> Manifest:
    """Write the instance that the recipe stands for, or find it written, whole and with this report.

    Args:
        folder: it must not hold another specialist unless `replace`, and nothing else in any case.
        report: what was measured of it (losses, how sure the domain weights are), JSON; for the card and the manifest.
            None: what is written already stays.

    Returns:
        The manifest, ``specialist.json``.
    """
    check_recipe(recipe, soup)
    folder = Path(os.path.realpath(folder))  # a link stays one, to what is replaced
    check_target(folder)
    with in_turn(folder):
        return _write(soup, folder, recipe, instance_P, report, replace)


def _write(
    soup: SoupOfExperts,
    folder: Path,
    recipe: Recipe,
    instance_P: torch.Tensor,
    report: Mapping[str, Any] | None,
    replace: bool | None,
) -> Manifest:
    check_target(folder)
    stage = open_stage(
        folder,
        kind="specialist",
        configuration=recipe.configuration(),
        inputs={"soup": soup.digest},
        rebuild=replace,
    )
    digest = tensors_digest(unflatten(instance_P, soup.layout))
    check_tensors(recipe, digest)
    counts = {"parameters": len(instance_P), "tensors": digest, **(report or {})}
    if stage.finished is not None:
        there = stage.finished.counts
        if there.get("tensors") != digest and not replace:
            raise StoreError(
                f"{folder} holds another specialist of the same coefficients: its parameters were learned from other "
                "texts. Use another name, or rebuild=true (--rebuild) to replace it."
            )
        if report is None and there.get("tensors") == digest:
            counts = there
        if canonical_json(counts) == canonical_json(there) and not damage(folder, stage.finished):
            return stage.finished
        stage.prepare()
    write_model(soup, instance_P, stage.work)
    (stage.work / CARD).write_text(model_card(folder.name, soup, recipe, counts), "utf-8")
    return stage.finish(counts)


def check_target(folder: Path) -> None:
    """Raise StoreError if a specialist cannot be written to `folder`: something else lies there, or nothing can."""
    if os.path.lexists(folder) and not (folder / manifest_name("specialist")).exists():
        raise StoreError(f"{folder} exists and holds no specialist. Choose another folder, or remove it.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"{folder} cannot be made ({error.filename}: {error.strerror}). Choose another folder."
        ) from error
    if not os.access(folder.parent, os.W_OK | os.X_OK):
        raise StoreError(
            f"{folder} cannot be made: {folder.parent} may not be written to. Choose another folder."
        )


def damage(folder: Path, manifest: Manifest) -> list[str]:
    """What is wrong with the specialist's files, by size and sha256."""
    try:
        verify_files(folder, manifest)
    except StoreError as error:
        return [str(error)]
    return []


def write_model(soup: SoupOfExperts, instance_P: torch.Tensor, folder: str | Path) -> None:
    """Model, generation settings and tokenizer, as transformers itself writes them."""
    from tokenizers import Tokenizer
    from transformers import GenerationConfig, PreTrainedTokenizerFast

    model = soup.model(instance_P)
    config = model.config
    if config.model_type == "gpt2":
        config.n_ctx = config.n_positions  # GGUF converters read it
    ends = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    model.generation_config = GenerationConfig(**ends, pad_token_id=config.eos_token_id, do_sample=False)
    model.save_pretrained(folder)
    length = getattr(config, "max_position_embeddings", None)
    file = str(soup.folder / "tokenizer.json")
    # A tokenizer of the user's has a name of its own for it.
    end_of_text = Tokenizer.from_file(file).id_to_token(config.eos_token_id)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=file,
        bos_token=end_of_text,
        eos_token=end_of_text,
        pad_token=end_of_text,
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,  # as in training, text that spells the end-of-text token is text
        **({} if length is None else {"model_max_length": length}),
    )
    tokenizer.save_pretrained(folder)


def materialize(recipe: Recipe, soup: SoupOfExperts, folder: Path) -> Manifest:
    """Write the specialist that a recipe stands for.

    Raises:
        ValueError: a recipe of another soup, or of a fine-tuned model.
        StoreError: the tensors came out other than the recipe says, or `folder` holds something else.
    """
    return write_specialist(soup, folder, recipe, instance_of(recipe, soup), replace=None)
