"""Whether a specialist's folder holds what its soup and its recipe give, to the bit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from soe_model.files.soup import SoupOfExperts
from soe_model.model.flat_module import unflatten
from soe_model.specialists.recipe import FINE_TUNED, check_recipe, instance_of, recipe_of
from soe_model.specialists.specialist_files import CARD, MODEL, damage, write_model
from storage_schema.json_files import read_object
from storage_schema.manifest import StoreError, manifest_name, read_manifest


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What became of recomputing a specialist."""

    problems: tuple[str, ...]
    """Empty: it is what it claims to be."""
    tensors: int
    parameters: int


def verify_specialist(folder: str | Path, soup: SoupOfExperts) -> Verification:
    """Recompute a specialist from its soup and compare every bit; its configuration and tokenizer are the soup's too.

    The card is compared with the sha256 in ``specialist.json``, and no other file may lie there: transformers would
    read some. Of a fine-tuned one the tensors cannot be recomputed; that is said among the problems.

    Raises:
        StoreError: `folder` holds no specialist, or a damaged one.
        ValueError: it is of another soup.
    """
    folder = Path(folder)
    manifest = read_manifest(folder, "specialist")
    recipe = recipe_of(manifest)
    check_recipe(recipe, soup)
    problems = damage(folder, manifest)
    try:
        found = load_file(folder / MODEL)
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{folder / MODEL} cannot be read: {error}.") from error
    if recipe.how.get("method") == FINE_TUNED:
        problems.append("it was fine-tuned: its files are checked, but no recipe gives its tensors.")
        instance_P = torch.zeros(soup.bank.num_params)
    else:
        instance_P = instance_of(recipe, soup)
        problems += _differences(unflatten(instance_P, soup.layout), found)
    with TemporaryDirectory() as expected:
        write_model(soup, instance_P, expected)
        problems += _other_files(Path(expected), folder)
    return Verification(
        problems=tuple(problems),
        tensors=len(found),
        parameters=sum(tensor.numel() for tensor in found.values()),
    )


def _other_files(expected: Path, folder: Path) -> list[str]:
    """How the files around the tensors differ from those of the soup, and what more lies there."""
    wanted = {path.name for path in expected.iterdir()}
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    there = {name for name in there if not name.startswith(".")}  # a repository's own
    known = wanted | {manifest_name("specialist"), CARD}
    problems = [f"there is {name}, which no specialist has." for name in sorted(there - known)]
    for name in sorted(wanted - {MODEL}):
        if name in there and not _same_json(expected / name, folder / name):
            problems.append(f"{name} is not what the soup and this version of transformers give.")
    return problems


def _same_json(one: Path, other: Path) -> bool:
    try:
        found = [read_object(path) for path in (one, other)]
    except (OSError, ValueError):
        return False
    for content in found:
        content.pop("transformers_version", None)
    wanted, there = found
    if "split_special_tokens" in wanted:  # folders of earlier versions do not have it
        there.setdefault("split_special_tokens", wanted["split_special_tokens"])
    return found[0] == found[1]


def _differences(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> list[str]:
    problems = [f"the tensor {name} is missing." for name in sorted(expected.keys() - found.keys())]
    problems += [f"there is a tensor {name} more." for name in sorted(found.keys() - expected.keys())]
    for name in sorted(expected.keys() & found.keys()):
        one, other = expected[name], found[name]
        if one.shape != other.shape or one.dtype != other.dtype:
            problems.append(
                f"{name} is {other.dtype} {tuple(other.shape)}, not {one.dtype} {tuple(one.shape)}."
            )
        elif not torch.equal(one.view(torch.int32), other.view(torch.int32)):
            differing = int((one != other).sum())
            largest = (one - other).abs().max().item()
            problems.append(
                f"{name} differs in {differing:,} of {one.numel():,} values, by {largest:.3g} at most."
            )
    return problems
