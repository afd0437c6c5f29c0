"""A specialist of a low-rank soup as a base model and a LoRA adapter for PEFT.

PEFT is https://github.com/huggingface/peft, tried with 0.21. An expert adds ``A_j B_jᵀ`` to a matrix, so the recipe's
experts together add ``[.. coefficient_j A_j ..] [.. B_j ..]ᵀ``: exactly one pair of factors of rank N r. (PEFT's own
``add_weighted_adapter`` calls that "cat"; its "linear" mixes A and B of different experts.)

PEFT adapts a layer by its module, so a matrix that two layers share is untied: where the embedding matrix is also that
of the output layer, the base model holds it twice and the adapter adapts both. Otherwise merging would add the change
twice to one matrix.

Legend: N experts with a coefficient other than zero, r their rank, R = N r, a x b a matrix, P parameters of one model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import nn

from soe_model.exports.parts import new_folder, used_experts
from soe_model.files.soup import SoupOfExperts
from soe_model.specialists.recipe import Recipe
from soe_model.specialists.specialist_files import write_model
from storage_schema.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BASE, ADAPTER = "base", "adapter"
_PREFIX = "base_model.model."
Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""For each parameter [a, R] and [b, R], whose product the recipe adds to it."""


def write_peft(soup: SoupOfExperts, recipe: Recipe, folder: Path) -> Path:
    """Write ``base/``, a Hugging Face model of the shared parameters, and ``adapter/``, which adds the experts to it.

    The adapter's rank is R, and so is ``lora_alpha`` (a scale of 1); its factors contain the coefficients. It takes
    4 R (a + b) bytes per matrix, more than the matrix itself once R exceeds a b / (a + b). The base takes 4 P bytes,
    and the embedding matrix a second time where the output layer shares it. ``adapter_config.json`` names the base by
    its absolute path.

    PEFT cannot adapt a matrix exactly that is not the weight of a plain Linear, Conv1D or Embedding layer. The base
    model then has the change of that matrix, so it belongs to this recipe alone; the adapter's README.md names such
    matrices. GPT-2 and Llama have none, and any adapter of the soup fits the same base.

    Args:
        folder: where to write; it must not exist.

    Returns:
        The path of ``adapter/``, for ``PeftModel.from_pretrained(model of base/, path)``.

    Raises:
        ValueError: the soup's experts are not of low rank; or the recipe is of another soup or of a fine-tuned model,
            or uses no expert.
        StoreError: `folder` exists.
    """
    if soup.config.expert_rank is None:
        raise UserError(
            f"{soup.folder} has experts of full rank (expert_rank is not set): no LoRA adapter equals them. "
            "Export to mergekit, or pretrain with expert_rank."
        )
    folder = Path(folder).absolute()
    factors = _concatenated(soup, used_experts(recipe, soup))
    with new_folder(folder) as work:
        instance_P = soup.instances(torch.zeros(1, soup.config.num_experts))[0]
        model = soup.model(instance_P)
        adapted = {name: pair for name, pair in factors.items() if _kind(model, name) is not None}
        merged = sorted(factors.keys() - adapted.keys())
        for slot in soup.layout:
            if slot.name in merged:
                left, right = factors[slot.name]
                instance_P[slot.offset : slot.offset + slot.size] += (left @ right.T).view(-1)
        write_model(soup, instance_P, work / BASE)
        adapted |= _untied(work / BASE, model, adapted)
        _write_adapter(work / ADAPTER, folder / BASE, model, adapted)
        (work / ADAPTER / "README.md").write_text(_card(soup, folder / BASE, merged), "utf-8")
    return folder / ADAPTER


def _concatenated(soup: SoupOfExperts, used: list[tuple[int, float]]) -> Factors:
    experts = [(soup.bank.experts[number].tensors(), coefficient) for number, coefficient in used]
    names = [name.removesuffix(".A") for name in experts[0][0] if name.endswith(".A")]
    return {
        name: (
            torch.cat([coefficient * tensors[f"{name}.A"] for tensors, coefficient in experts], 1),
            torch.cat([tensors[f"{name}.B"] for tensors, _ in experts], 1),
        )
        for name in names
    }


def _kind(model: PreTrainedModel, parameter: str) -> type | None:
    """The type of the layer whose weight this is; None if PEFT cannot adapt it."""
    from transformers.pytorch_utils import Conv1D

    module, _, name = parameter.rpartition(".")
    # Only the types themselves: a subclass may use its weight in another way than PEFT's layer does.
    kind = type(model.get_submodule(module))
    return kind if name == "weight" and kind in (nn.Linear, Conv1D, nn.Embedding) else None


def _untied(base: Path, model: PreTrainedModel, adapted: Factors) -> Factors:
    """Untie the base model's output layer from its embeddings where one matrix is both; return its factors."""
    names = {module: name for name, module in model.named_modules()}
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    shared = f"{names[inputs]}.weight"
    if outputs is None or outputs.weight is not inputs.weight or shared not in adapted:
        return {}
    from transformers import AutoModelForCausalLM

    written = AutoModelForCausalLM.from_pretrained(base, trust_remote_code=False)
    written.config.tie_word_embeddings = False
    written.get_output_embeddings().weight = nn.Parameter(
        written.get_input_embeddings().weight.detach().clone()
    )
    written.save_pretrained(base)
    return {f"{names[outputs]}.weight": adapted[shared]}


def _write_adapter(folder: Path, base: Path, model: PreTrainedModel, adapted: Factors) -> None:
    tensors: dict[str, torch.Tensor] = {}
    for name, (left_aR, right_bR) in adapted.items():
        module, kind = _PREFIX + name.removesuffix(".weight"), _kind(model, name)
        # PEFT's A is what the input meets first. A Linear's weight is [out, in]; the others' are [in, out].
        first, second = (right_bR, left_aR) if kind is nn.Linear else (left_aR, right_bR)
        middle, end = ("lora_embedding_", "") if kind is nn.Embedding else ("lora_", ".weight")
        tensors[f"{module}.{middle}A{end}"] = first.T.contiguous()
        tensors[f"{module}.{middle}B{end}"] = second.contiguous()
    [rank] = {left.shape[1] for left, _ in adapted.values()}
    kinds = {kind.__name__ for name in adapted if (kind := _kind(model, name))}
    configuration = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": "Conv1D" in kinds,
        "target_modules": sorted(name.removesuffix(".weight") for name in adapted),
    }
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(configuration, indent=2) + "\n", "utf-8")


def _card(soup: SoupOfExperts, base: Path, merged: list[str]) -> str:
    own = (
        "PEFT cannot adapt these matrices exactly, so their change lies in the base model, which belongs to this "
        f"adapter alone: {', '.join(merged)}."
        if merged
        else "The base model is the soup's shared parameters: adapters of other recipes of this soup fit it too."
    )
    front = (
        f"---\nbase_model: {json.dumps(str(base))}\nlibrary_name: peft\ntags: [soup-of-experts, lora]\n---\n"
    )
    return f"{front}\n# A specialist as an adapter\n\nOf the Soup-of-Experts `{soup.digest}`. {own}\n"
