"""A specialist as mergekit merges it, by mergekit's own command."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoTokenizer

from soe_model.exports.mergekit import write_mergekit
from soe_model.exports.parts import new_folder
from soe_model.files.soup import SoupOfExperts
from soe_model.model.flat_module import unflatten
from soe_model.specialists.recipe import instance_of, make_recipe
from storage_schema.manifest import StoreError
from tests.extras import needs


def recipe_for(soup, *coefficients):
    return make_recipe(soup, coefficients_N=torch.tensor(coefficients), how={"method": "by hand"})


def largest_difference(found, expected):
    assert found.keys() == expected.keys()
    return max((found[name] - tensor).abs().max().item() for name, tensor in expected.items())


def test_mergekit_merges_the_specialist(made, tmp_path):
    needs("mergekit", extra="exports")
    soup = SoupOfExperts.open(made[0])
    recipe = recipe_for(soup, 0.7, -0.3, 0.0, 1.9)
    configuration = write_mergekit(soup, recipe, tmp_path / "merge")
    assert sorted(path.name for path in (tmp_path / "merge").iterdir()) == [
        "expert-000", "expert-001", "expert-003", "mergekit.yml", "shared",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "mergekit.scripts.run_yaml", str(configuration), str(tmp_path / "merged")],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    merged = load_file(tmp_path / "merged/model.safetensors")
    assert largest_difference(merged, unflatten(instance_of(recipe, soup), soup.layout)) < 1e-6
    shared = unflatten(soup.instances(torch.zeros(1, 4))[0], soup.layout)
    assert largest_difference(merged, shared) > 1e-2  # so that a merge of nothing would show
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")("w3 w5").input_ids == [3, 5]


def test_weights_are_numbers_to_yaml_however_small(made, tmp_path):
    """YAML takes 1e-05 for a word."""
    soup = SoupOfExperts.open(made[0])
    recipe = recipe_for(soup, 1e-5, 0.0, -3e-20, 0.1)
    merge = yaml.safe_load(write_mergekit(soup, recipe, tmp_path / "merge").read_text("utf-8"))
    weights = [model["parameters"]["weight"] for model in merge["models"]]
    assert weights == [c for c in recipe.coefficients if c]
    for model in [merge["base_model"], *(one["model"] for one in merge["models"])]:
        assert os.path.isabs(model) and os.path.isfile(f"{model}/model.safetensors")


def test_what_cannot_be_exported_is_refused(made, tmp_path):
    soup = SoupOfExperts.open(made[0])
    recipe = recipe_for(soup, 0.5, 0.0, 0.0, 0.0)
    (tmp_path / "mine").mkdir()
    with pytest.raises(StoreError, match="mine exists"):
        write_mergekit(soup, recipe, tmp_path / "mine")
    with pytest.raises(ValueError, match=r"does not take .*a\+b for a path"):
        write_mergekit(soup, recipe, tmp_path / "a+b")
    with pytest.raises(ValueError, match="all 4 coefficients are 0"):
        write_mergekit(soup, recipe_for(soup, 0.0, 0.0, 0.0, 0.0), tmp_path / "merge")
    with pytest.raises(ValueError, match="was fine-tuned"):
        write_mergekit(soup, replace(recipe, how={"method": "fine-tuned"}), tmp_path / "merge")
    with pytest.raises(ValueError, match="the recipe is of the soup"):
        write_mergekit(soup, replace(recipe, soup="0" * 64), tmp_path / "merge")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_export_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), new_folder(tmp_path / "export") as work:
        (work / "part").write_text("half")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
