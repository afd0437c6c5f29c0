"""A specialist as a merge for mergekit (https://github.com/arcee-ai/mergekit, tried with 0.1.5).

mergekit's ``task_arithmetic`` gives ``base + sum_j weight_j (model_j - base)``. With the shared parameters S as the
base, S + E_j as the models and the coefficients as the weights, that is the specialist ``S + sum_j coefficient_j E_j``.
From there its other methods, sparsifiers and models can be tried on the experts.

Legend: N experts with a coefficient other than zero, P parameters of one model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml

from soe_model.exports.parts import new_folder, used_experts
from soe_model.files.bank_files import expert_file
from soe_model.files.soup import SoupOfExperts
from soe_model.specialists.recipe import Recipe
from soe_model.specialists.specialist_files import write_model
from storage_schema.errors import UserError

CONFIGURATION = "mergekit.yml"
SHARED_MODEL = "shared"
_READ_OTHERWISE = "+@"
"""mergekit splits a model's name at these: an adapter follows the first, a revision the second."""


def write_mergekit(soup: SoupOfExperts, recipe: Recipe, folder: Path) -> Path:
    """Write the models of a merge, and the file that tells mergekit how to merge them.

    ``shared/`` is S, and ``expert-007/`` is S + E_7; there is one for each expert whose coefficient is not zero.
    ``mergekit.yml`` names them by absolute paths: it runs from anywhere, and its paths must be changed if the folder
    is moved. The folder takes the disk of N + 1 whole models, 4 (N + 1) P bytes and their tokenizers. It is written
    one model at a time.

    mergekit subtracts S from S + E_j again in float32, so its result differs from the specialist by rounding:
    ``2**-24 sum_j |coefficient_j| |S + E_j|``, and about as much again for the sum.

    Args:
        folder: where to write; it must not exist, and its path may not contain ``+`` or ``@``.

    Returns:
        The path of ``mergekit.yml``, for ``mergekit-yaml mergekit.yml OUT``.

    Raises:
        ValueError: the recipe is of another soup or of a fine-tuned model, or uses no expert, or mergekit would misread
            the path.
        StoreError: `folder` exists.
    """
    folder = Path(folder).absolute()
    used = used_experts(recipe, soup)
    for character in _READ_OTHERWISE:
        if character in str(folder):
            raise UserError(
                f"mergekit does not take {folder} for a path, for its {character!r}. Choose another folder."
            )
    with new_folder(folder) as work:
        nothing_N = torch.zeros(soup.config.num_experts)
        write_model(soup, soup.instances(nothing_N[None])[0], work / SHARED_MODEL)
        for number, _ in used:
            one_N = nothing_N.clone()
            one_N[number] = 1
            write_model(soup, soup.instances(one_N[None])[0], work / _model_of(number))
        (work / CONFIGURATION).write_text(_yaml(folder, soup, used), "utf-8")
    return folder / CONFIGURATION


def _model_of(expert: int) -> str:
    return Path(expert_file(expert)).stem


def _yaml(folder: Path, soup: SoupOfExperts, used: list[tuple[int, float]]) -> str:
    merge: dict[str, Any] = {
        "merge_method": "task_arithmetic",
        "base_model": str(folder / SHARED_MODEL),
        "models": [
            {"model": str(folder / _model_of(number)), "parameters": {"weight": coefficient}}
            for number, coefficient in used
        ],
        "parameters": {"normalize": False, "lambda": 1.0},
        "dtype": "float32",
    }
    head = f"# A specialist of the soup {soup.digest}.\n# mergekit-yaml {folder / CONFIGURATION} OUT\n"
    return head + yaml.safe_dump(merge, sort_keys=False, allow_unicode=True, width=1000)
