"""Git-Theta's update type ``soup``: a specialist in git is stored as its recipe, and checked out as its tensors.

    git theta add model.safetensors --update-type soup --update-data specialist.json

git-lfs stores one record of some hundred bytes for all tensors: the soup's digest, the coefficients and a digest of the
tensors. Each machine says where its soup lies, in SOE_SOUP or ``git config soe.soup``. Tensors that are not, bit for
bit, those of the recipe are refused when they are added and when they are checked out.

Git-Theta 0.2.0 loads this module by its entry points; nothing else here imports it.
"""

from __future__ import annotations

import asyncio
import os
from functools import lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import safetensors.numpy
from file_or_name import file_or_name  # deptry: ignore[DEP004]
from git_theta import git_utils, metadata  # deptry: ignore[DEP004]
from git_theta.checkpoints.safetensors_checkpoint import SafeTensorsCheckpoint  # deptry: ignore[DEP004]
from git_theta.updates import Update  # deptry: ignore[DEP004]
from git_theta.utils import EnvVarConstants  # deptry: ignore[DEP004]

from soe_model.files.soup import SoupOfExperts
from soe_model.model.flat_module import unflatten
from soe_model.specialists.recipe import (
    FINE_TUNED,
    Recipe,
    as_numbers,
    instance_of,
    read_recipe,
    tensors_digest,
)
from storage_schema.errors import UserError
from storage_schema.json_files import as_object, parse_json
from storage_schema.layout import soup_folder
from storage_schema.manifest import canonical_json

RECORD = "recipe"
"""Name of the only array in the stored record, which holds JSON as bytes."""
CHECKPOINT_TYPE = "transformers"

_locks: WeakKeyDictionary = WeakKeyDictionary()
_recipes: dict[str, Recipe] = {}


class TransformersCheckpoint(SafeTensorsCheckpoint):
    """Git-Theta's ``safetensors`` with the header that transformers writes, so that the file's bytes stay the same."""

    name = CHECKPOINT_TYPE

    @file_or_name(checkpoint_path="wb")
    def save(self, checkpoint_path: Any) -> None:
        """Write ``{name: array}``."""
        checkpoint_path.write(safetensors.numpy.save(self, metadata={"format": "pt"}))


class SoupUpdate(Update):
    """Stores a tensor as the part of ``S + sum_j alpha_j E_j`` that it is (eq. 2 of the paper, arXiv 2502.01804)."""

    name = "soup"

    def __init__(self, serializer: Any, update_data: str = ""):
        """`update_data` is a ``specialist.json`` or the folder that holds one; only writing needs it."""
        super().__init__(serializer)
        self.update_data = update_data
        self._stored: tuple[Recipe, metadata.LfsMetadata] | None = None

    def will_update(self, param_keys: tuple[str, ...]) -> bool:
        """True, because Git-Theta's hash takes tensors that differ by 1e-8 for equal."""
        return True

    async def write(
        self, param: np.ndarray, param_keys: tuple[str, ...], *, repo: Any = None, **_: Any
    ) -> tuple[metadata.LfsMetadata, None]:
        """Store the recipe if it gives exactly these values.

        Returns:
            The record's pointer in git-lfs, and None, which leaves Git-Theta's hash of the tensor as it is.

        Raises:
            ValueError: the recipe gives other values, or there is no recipe or soup.
        """
        async with _lock():
            if self._stored is None:
                self._stored = await self._store(read_recipe(self.update_data), repo)
        recipe, pointer = self._stored
        _check_equal(param, _tensor(recipe, param_keys, repo), "/".join(param_keys))
        return pointer, None

    async def apply(
        self, param_metadata: Any, param_keys: tuple[str, ...], *, repo: Any = None, path: str = "", **_: Any
    ) -> np.ndarray:
        """The tensor that the stored recipe gives, in the shape that it has in the soup.

        Raises:
            ValueError: the recipe or the soup is missing, the soup is another one, or the tensors are not those that
                were added.
        """
        _check_checkpoint_type(path)
        oid = param_metadata.lfs_metadata.oid
        async with _lock():
            if oid not in _recipes:
                _recipes[oid] = await self._fetch(param_metadata)
        return _tensor(_recipes[oid], param_keys, repo)

    async def _store(self, recipe: Recipe, repo: Any) -> tuple[Recipe, metadata.LfsMetadata]:
        if recipe.how.get("method") == FINE_TUNED:
            raise UserError(
                f"{self.update_data} is of a fine-tuned specialist, whose tensors no coefficients give. "
                "Add it without --update-type soup."
            )
        recipe = Recipe(soup=recipe.soup, coefficients=recipe.coefficients)
        digest = _tensors(recipe, _place(repo))[1]
        record = {"soup": recipe.soup, "coefficients": list(recipe.coefficients), "tensors": digest}
        content = np.frombuffer(canonical_json(record).encode(), np.uint8)
        pointer = await git_utils.git_lfs_clean(await self.serializer.serialize({RECORD: content}))
        return recipe, metadata.LfsMetadata.from_pointer(pointer)

    async def _fetch(self, param_metadata: Any) -> Recipe:
        try:
            stored = await self.read(param_metadata)
            record = as_object(parse_json(bytes(np.asarray(stored[RECORD], np.uint8)), RECORD), RECORD)
            return Recipe(
                soup=str(record["soup"]),
                coefficients=as_numbers(record["coefficients"]),
                tensors=str(record["tensors"]),
            )
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise UserError(
                f"git-lfs gave no recipe of a specialist for the object {param_metadata.lfs_metadata.oid[:12]}…: "
                f"{error!r}. If it is missing here, see what `git lfs fetch` says of the remote."
            ) from error


def _lock() -> asyncio.Lock:
    """A lock for the first tensor, which fetches or stores for all: Git-Theta asks for all of them at once."""
    return _locks.setdefault(asyncio.get_running_loop(), asyncio.Lock())


def _tensor(recipe: Recipe, param_keys: tuple[str, ...], repo: Any) -> np.ndarray:
    name = "/".join(param_keys)
    tensors, digest = _tensors(recipe, _place(repo))
    if recipe.tensors not in (None, digest):
        raise UserError(
            f"the tensors {recipe.tensors[:12]}… were added, but here they come out as {digest[:12]}…: another BLAS "
            "rounds a low-rank soup's sums differently. Check out on a machine like the one that added them."
        )
    if name not in tensors:
        raise UserError(
            f"the soup has no parameter {name!r}. Track the model.safetensors of a specialist's folder."
        )
    return tensors[name]


def _tensors(recipe: Recipe, place: str) -> tuple[dict[str, np.ndarray], str]:
    return _made(recipe.soup, recipe.coefficients, place)


@lru_cache(maxsize=2)
def _made(soup: str, coefficients: tuple[float, ...], place: str) -> tuple[dict[str, np.ndarray], str]:
    """All tensors and their digest. Two recipes are kept, because a file may go from one to another."""
    opened = SoupOfExperts.open(place)
    recipe = Recipe(soup=soup, coefficients=coefficients)
    tensors = unflatten(instance_of(recipe, opened), opened.layout)
    return {name: tensor.numpy() for name, tensor in tensors.items()}, tensors_digest(tensors)


def _place(repo: Any) -> str:
    place = os.environ.get("SOE_SOUP") or (_configured(repo.git_dir) if repo is not None else "")
    if not place:
        raise UserError(
            "where is the soup? Set the environment variable SOE_SOUP, or `git config soe.soup`, to its name or path."
        )
    return str(soup_folder(place))


@lru_cache
def _configured(git_dir: str) -> str:
    from git import Repo  # deptry: ignore[DEP004]

    return Repo(git_dir).git.config("--type=path", "--get", "soe.soup", with_exceptions=False)


def _check_checkpoint_type(path: str) -> None:
    if Path(path).suffix != ".safetensors":
        return
    found = EnvVarConstants.CHECKPOINT_TYPE
    if found != CHECKPOINT_TYPE and not found.startswith("safetensors"):
        raise UserError(
            f"Git-Theta would write {path} in the format {found!r}. "
            f"Set the environment variable GIT_THETA_CHECKPOINT_TYPE={CHECKPOINT_TYPE} for every git command."
        )


def _check_equal(offered: np.ndarray, expected: np.ndarray, name: str) -> None:
    if offered.shape != expected.shape or offered.dtype != expected.dtype:
        raise UserError(
            f"{name} is {offered.dtype} {offered.shape}; the recipe gives {expected.dtype} {expected.shape}."
        )
    offered, expected = np.ascontiguousarray(offered), np.ascontiguousarray(expected)
    differing = offered.view(np.int32) != expected.view(np.int32)
    if differing.any():
        largest = np.abs(offered - expected).max()
        raise UserError(
            f"{name} is not what the recipe gives: {differing.sum()} of {differing.size} values differ, by "
            f"{largest:.3g} at most. Give the specialist.json of this very model, or add it without --update-type soup."
        )
