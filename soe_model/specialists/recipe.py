"""A specialist as its recipe: the digest of its soup and the coefficients, kilobytes that rebuild every bit.

``specialist.json`` is the manifest of the specialist's directory; alone it is the recipe.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from soe_model.files.soup import SoupOfExperts
from soe_model.specialists.blending import BLENDED
from soe_model.specialists.refining import REFINED, steps_taken
from storage_schema.errors import UserError
from storage_schema.manifest import Manifest, StoreError, read_manifest

FINE_TUNED, GENERIC = "fine-tuned", "generic"
_LARGEST = float(np.finfo(np.float32).max)
_ONE = 1 + 1e-6
AS_ROUNDED = 1e-3
"""Coefficients of the same domain weights, on another machine, differ by less of the largest."""
BLEND_COEFFICIENTS, BLEND_DOMAIN_WEIGHTS = "average-coefficients", "average-domain-weights"

OF_DOMAIN_WEIGHTS = (BLENDED, "nearest-centroids", FINE_TUNED, GENERIC, BLEND_DOMAIN_WEIGHTS)
"""Methods whose coefficients are those of the recipe's domain weights."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What makes a specialist out of a soup."""

    soup: str
    """Digest of the soup."""
    coefficients: tuple[float, ...]
    """alpha, float32 values."""
    how: dict[str, Any] = field(default_factory=dict)
    """``method`` and whatever says how the coefficients were found."""
    domain_weights: dict[int, float] | None = None
    """h without its zeros, float32 values; None where the coefficients do not come from one."""
    tensors: str | None = None
    """:func:`tensors_digest` of the model; None before it was made."""

    @property
    def coefficients_N(self) -> torch.Tensor:
        return torch.tensor(self.coefficients, dtype=torch.float32)

    def configuration(self) -> dict[str, Any]:
        """As ``specialist.json`` holds it."""
        weights = self.domain_weights
        return {
            **self.how,
            "coefficients": list(self.coefficients),
            "domain_weights": None if weights is None else {str(i): w for i, w in weights.items()},
        }


def make_recipe(
    soup: SoupOfExperts,
    *,
    coefficients_N: torch.Tensor,
    domain_weights_K: torch.Tensor | None = None,
    how: Mapping[str, Any],
) -> Recipe:
    """The recipe of coefficients that were just found. Raises ValueError as :meth:`SoupOfExperts.instances`."""
    recipe = Recipe(
        soup=soup.digest,
        coefficients=tuple(map(_shortest, coefficients_N.tolist())),
        domain_weights=None if domain_weights_K is None else sparse(domain_weights_K),
        how=dict(how),
    )
    check_recipe(recipe, soup)
    return recipe


def read_recipe(path: str | Path) -> Recipe:
    """The recipe in a ``specialist.json``, or of the directory that holds one.

    Raises:
        StoreError: there is none, it was altered, or it is of another version.
        ValueError: what it holds is no recipe.
    """
    path = Path(path)
    if not path.is_dir() and not path.exists():
        raise StoreError(f"there is no recipe at {path}. Give a specialist.json, or a folder that holds one.")
    folder, name = (path, None) if path.is_dir() else (path.parent, path.name)
    manifest = read_manifest(folder, "specialist", name=name)
    try:
        return recipe_of(manifest)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def recipe_of(manifest: Manifest) -> Recipe:
    """The recipe of a specialist's manifest. Raises ValueError if it holds none."""
    how = dict(manifest.configuration)
    try:
        coefficients, weights = how.pop("coefficients"), how.pop("domain_weights")
        tensors = manifest.counts.get("tensors")
        return Recipe(
            soup=str(manifest.inputs["soup"]),
            coefficients=as_numbers(coefficients),
            domain_weights=None if weights is None else _domain_weights(weights),
            how=how,
            tensors=None if tensors is None else str(tensors),
        )
    except (KeyError, ValueError) as error:
        raise UserError(f"specialist.json holds no recipe: {error!r}. Make the specialist again.") from error


def as_numbers(values: Any) -> tuple[float, ...]:
    """The numbers of a list of JSON. Raises ValueError for anything else."""
    if not isinstance(values, list) or any(type(value) not in (int, float) for value in values):
        raise UserError("the coefficients are not a list of numbers")
    if any(abs(value) > _LARGEST for value in values):
        raise UserError(f"a coefficient is beyond the largest float32, {_LARGEST:.4g}")
    return tuple(map(float, values))


def _domain_weights(weights: Any) -> dict[int, float]:
    if not isinstance(weights, dict) or not all(name.isascii() and name.isdigit() for name in weights):
        raise UserError("the domain weights are not numbers by domain")
    found = dict(zip(map(int, weights), as_numbers(list(weights.values())), strict=True))
    if len(found) < len(weights) or not all(0 <= weight <= _ONE for weight in found.values()):
        raise UserError("the domain weights name a domain twice, or are not between 0 and 1")
    return found


def check_recipe(recipe: Recipe, soup: SoupOfExperts) -> None:
    """Raise ValueError unless the recipe is one of this soup, with as many finite coefficients as it has experts."""
    if recipe.soup != soup.digest:
        raise UserError(
            f"the recipe is of the soup {recipe.soup[:12]}…; {soup.folder} is {soup.digest[:12]}…. "
            "Give the soup it was made from."
        )

    def refuse(problem: str) -> NoReturn:
        tensors = f" (tensors {recipe.tensors[:12]}…)" if recipe.tensors else ""
        raise UserError(
            f"{problem}. The recipe{tensors} does not fit its soup {soup.folder}: use the specialist.json as it was "
            "written, or make the specialist again."
        )

    found, wanted = len(recipe.coefficients), soup.config.num_experts
    if found != wanted:
        refuse(f"the recipe has {found} coefficients; the soup has {wanted} experts")
    for number, value in enumerate(recipe.coefficients):
        if not abs(value) <= _LARGEST:
            refuse(
                f"coefficient {number} of the recipe is {value}; it must be finite, {_LARGEST:.4g} at most"
            )
    for domain in recipe.domain_weights or {}:
        if not 0 <= domain < soup.config.num_domains:
            refuse(f"the recipe names domain {domain}; the soup has {soup.config.num_domains} domains")
    if _follows_domain_weights(recipe.how) and recipe.domain_weights:
        try:
            expected_N = soup.coefficients(dense(recipe, soup)[None])[0]
        except ValueError as error:
            refuse(f"of the recipe, {str(error).rstrip('.')}")
        apart = (expected_N - recipe.coefficients_N).abs().max().item()
        if not apart <= AS_ROUNDED * max(1.0, expected_N.abs().max().item()):
            refuse(f"the recipe's coefficients are up to {apart:.3g} from those of its domain weights")


def _follows_domain_weights(how: Mapping[str, Any]) -> bool:
    stayed = REFINED in how and not steps_taken(how)
    return how.get("method") in OF_DOMAIN_WEIGHTS or (how.get("method") == REFINED and stayed)


def check_tensors(recipe: Recipe, found: str) -> None:
    """Raise StoreError unless the digest found is that of the tensors which the recipe names, if it names any."""
    if recipe.tensors not in (None, found):
        raise StoreError(
            f"the recipe says the tensors {recipe.tensors[:12]}…, but they came out as {found[:12]}…. "
            "Low-rank soups round like this on machines of another BLAS; otherwise the recipe was altered."
        )


def instance_of(recipe: Recipe, soup: SoupOfExperts) -> torch.Tensor:
    """The instance [P] that the recipe stands for.

    Raises:
        ValueError: the recipe is not of this soup, or of a fine-tuned model, which no coefficients give.
    """
    check_recipe(recipe, soup)
    if recipe.how.get("method") == FINE_TUNED:
        raise UserError(
            "the specialist was fine-tuned after it was put together: its recipe does not rebuild it. "
            "Keep its model.safetensors."
        )
    return soup.instances(recipe.coefficients_N[None])[0]


def dense(recipe: Recipe, soup: SoupOfExperts) -> torch.Tensor:
    """The recipe's domain weights with their zeros, float32 [K]."""
    weights_K = torch.zeros(soup.config.num_domains)
    for domain, weight in (recipe.domain_weights or {}).items():
        weights_K[domain] = weight
    return weights_K


def sparse(weights_K: torch.Tensor) -> dict[int, float]:
    """Domain → float32 weight, without the zeros."""
    return {i: _shortest(float(weights_K[i])) for i in weights_K.nonzero().flatten().tolist()}


def tensors_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """sha256 of names, types, shapes and values in the order of the names: the same whatever file they lie in."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _shortest(value: float) -> float:
    """The shortest decimal that is this float32."""
    return float(str(np.float32(value)))
