"""What all exports share: the experts that a recipe uses, and a folder that appears only when it is complete."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from soe_model.files.soup import SoupOfExperts
from soe_model.model.flat_module import unflatten
from soe_model.specialists.recipe import (
    FINE_TUNED,
    Recipe,
    check_recipe,
    check_tensors,
    instance_of,
    tensors_digest,
)
from storage_schema.errors import UserError
from storage_schema.manifest import StoreError


def used_experts(recipe: Recipe, soup: SoupOfExperts) -> list[tuple[int, float]]:
    """Number and coefficient of each expert whose coefficient is not zero.

    Raises:
        ValueError: the recipe is of another soup or of a fine-tuned model, or uses no expert.
        StoreError: the recipe gives other tensors than it names.
    """
    check_recipe(recipe, soup)
    if recipe.how.get("method") == FINE_TUNED:
        raise UserError(
            "the specialist was fine-tuned after it was put together: it is no sum of the soup's experts. "
            "Use its own directory, which is a whole Hugging Face model."
        )
    used = [(number, value) for number, value in enumerate(recipe.coefficients) if value]
    if not used:
        raise UserError(
            f"all {len(recipe.coefficients)} coefficients are 0: the specialist is the shared model, and there is "
            "nothing to add to it. Write it as a whole model with `soe materialize`."
        )
    check_tensors(recipe, tensors_digest(unflatten(instance_of(recipe, soup), soup.layout)))
    return used


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into. At the end it is renamed to `folder`; if something fails it is removed.

    Raises StoreError if `folder` exists.
    """
    if os.path.lexists(folder):
        raise StoreError(f"{folder} exists. Choose another folder, or remove it.")
    # Nobody else uses this name, so the folder may be removed.
    work = folder.with_name(f".{folder.name}.{uuid4().hex[:8]}.partial")
    work.mkdir(parents=True)
    try:
        yield work
        os.rename(work, folder)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
