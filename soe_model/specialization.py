"""Write a specialist: a Hugging Face directory that plain transformers loads, and the recipe that made it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from soe_model.soup import SoupOfExperts
from storage_schema.manifest import Manifest, open_stage

END_OF_TEXT = "<|endoftext|>"


def write_specialists(
    soup: SoupOfExperts,
    folders: list[Path],
    domain_weights_WK: torch.Tensor,
    *,
    recipes: list[dict[str, Any]],
    rebuild: bool = False,
) -> list[Manifest]:
    """Make W specialists in one pass over the bank.

    Args:
        folders: one directory each; it must not hold another specialist unless `rebuild`.
        domain_weights_WK: one row each.
        recipes: what else to record of each (how its weights were found), JSON.

    Returns:
        The manifest (``specialist.json``) of each: soup digest, domain weights, coefficients.
    """
    coefficients_WN = soup.coefficients(domain_weights_WK)
    stages = [
        open_stage(
            folder,
            kind="specialist",
            configuration={
                **recipe,
                "domain_weights": _sparse(weights_K),
                "coefficients": [float(a) for a in coefficients_N],
            },
            inputs={"soup": soup.digest},
            rebuild=rebuild,
        )
        for folder, recipe, weights_K, coefficients_N in zip(
            folders, recipes, domain_weights_WK, coefficients_WN, strict=True
        )
    ]
    missing = [w for w, stage in enumerate(stages) if stage.finished is None]
    if missing:
        instances_WP = soup.instances(coefficients_WN[missing])
        for w, instance_P in zip(missing, instances_WP, strict=True):
            _write_model(soup, instance_P, stages[w].work)
            (stages[w].work / "README.md").write_text(
                _card(folders[w].name, stages[w].configuration), "utf-8"
            )
            stages[w].finish({"parameters": len(instance_P)})
    return [stage.finished for stage in stages]


def _write_model(soup: SoupOfExperts, instance_P: torch.Tensor, folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    soup.model(instance_P).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(soup.folder / "tokenizer.json"),
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(folder)


def _sparse(weights_K: torch.Tensor) -> dict[str, float]:
    """Domain → weight, without the zeros."""
    return {str(i): float(weights_K[i]) for i in weights_K.nonzero().flatten().tolist()}


def _card(name: str, configuration: dict[str, Any]) -> str:
    weights = sorted(configuration["domain_weights"].items(), key=lambda item: -item[1])
    rows = "\n".join(f"| {domain} | {weight:.4f} |" for domain, weight in weights[:20])
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [soup-of-experts]
---
# {name}

A specialist of a Soup-of-Experts: `shared + sum_j coefficient_j * expert_j`, made without training from the
domain weights below. `specialist.json` holds the full recipe.

Load it with `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained`.

| domain | weight |
|---|---|
{rows}
"""
