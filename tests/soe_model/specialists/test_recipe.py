"""Recipes: a few kilobytes that rebuild every bit, and what is refused."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from soe_model.exports.mergekit import write_mergekit
from soe_model.model.flat_module import unflatten
from soe_model.specialists.recipe import (
    Recipe,
    check_recipe,
    read_recipe,
)
from soe_model.specialists.specialist_files import MODEL, materialize
from soe_model.specialists.verification import verify_specialist
from storage_schema.manifest import Manifest, StoreError
from tests.soe_model.toy_soup import WEIGHTS, recipes_for, write


def test_the_recipe_alone_rebuilds_every_file(soup, tmp_path):
    write(soup, tmp_path / "a")
    alone = tmp_path / "mailed.json"
    shutil.copyfile(tmp_path / "a/specialist.json", alone)
    materialize(read_recipe(alone), soup, tmp_path / "b")
    for name in (MODEL, "config.json", "tokenizer.json", "generation_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert verify_specialist(tmp_path / "b", soup).problems == ()


def test_a_recipe_of_before_the_method_blended_rebuilds_every_bit(soup, tmp_path):
    how = {"method": "nearest-centroids", "rule": "flat", "num_texts": 200, "texts": "d" * 64}
    weights_K = torch.tensor([0.0, 0.25, 0.5, 0.0, 0.25])
    coefficients_N = soup.coefficients(weights_K[None])[0]
    body = {
        **how,
        "coefficients": coefficients_N.tolist(),
        "domain_weights": {"1": 0.25, "2": 0.5, "4": 0.25},
    }
    old = Manifest(kind="specialist", configuration=body, inputs={"soup": soup.digest}, counts={}, files=())
    (tmp_path / "specialist.json").write_text(old.to_json())
    recipe = read_recipe(tmp_path / "specialist.json")
    assert recipe.how == how and recipe.configuration() == body
    materialize(recipe, soup, tmp_path / "made")
    instance_P = soup.instances(coefficients_N[None])[0]
    found = load_file(tmp_path / "made" / MODEL)
    for name, tensor in unflatten(instance_P, soup.layout).items():
        assert torch.equal(tensor, found.get(name, tensor)), name
    assert verify_specialist(tmp_path / "made", soup).problems == ()


def test_a_recipe_of_200_domains_and_128_experts_is_under_10_kb(soup, tmp_path):
    random = np.random.default_rng(0)
    recipe = Recipe(
        soup="0" * 64,
        coefficients=tuple(float(str(np.float32(a))) for a in random.normal(size=128)),
        domain_weights={int(i): 0.005 for i in random.choice(4096, 200, replace=False)},
        how={"method": "nearest-centroids", "rule": "flat", "num_texts": 200},
    )
    write(soup, tmp_path / "a")
    body = json.loads((tmp_path / "a/specialist.json").read_text())
    body["configuration"] = recipe.configuration()
    assert len(json.dumps(body, indent=1)) < 10_000


def test_a_recipe_that_was_altered_or_is_none_is_refused(soup, tmp_path):
    write(soup, tmp_path / "a")
    path = tmp_path / "a/specialist.json"
    body = json.loads(path.read_text())
    body["configuration"]["coefficients"][0] += 1
    path.write_text(json.dumps(body))
    with pytest.raises(StoreError, match="specialist.json was altered"):
        read_recipe(tmp_path / "a")
    path.write_text("[]")
    with pytest.raises(StoreError, match="is not a manifest"):
        read_recipe(path)
    with pytest.raises(StoreError, match="there is no recipe at"):
        read_recipe(tmp_path / "nothing.json")


def test_a_recipe_of_another_soup_or_of_other_numbers_is_refused(soup):
    [recipe] = recipes_for(soup, WEIGHTS[:1])
    with pytest.raises(ValueError, match="the recipe is of the soup 000000000000"):
        check_recipe(replace(recipe, soup="0" * 64), soup)
    with pytest.raises(ValueError, match="has 3 coefficients; the soup has 4 experts"):
        check_recipe(replace(recipe, coefficients=recipe.coefficients[:3]), soup)
    for bad in (float("nan"), float("inf"), 1e60):
        with pytest.raises(ValueError, match="coefficient 1 of the recipe is .*; it must be finite"):
            check_recipe(replace(recipe, coefficients=(0.0, bad, 0.0, 0.0)), soup)
    with pytest.raises(ValueError, match="names domain 5; the soup has 5 domains"):
        check_recipe(replace(recipe, domain_weights={5: 1.0}), soup)


@pytest.mark.parametrize(
    "change",
    [{"coefficients": (0.5,)}, {"coefficients": (0.0, float("nan"), 0.0, 0.0)}, {"domain_weights": {5: 1}}],
)
def test_a_recipe_that_does_not_fit_is_named_with_its_soup_and_the_way_out(soup, change):
    [recipe] = recipes_for(soup, WEIGHTS[:1])
    with pytest.raises(ValueError) as caught:
        check_recipe(replace(recipe, tensors="ab" * 32, **change), soup)
    message = str(caught.value)
    assert "tensors abababababab…" in message and str(soup.folder) in message
    assert "use the specialist.json as it was written, or make the specialist again" in message


@pytest.mark.parametrize(
    "how",
    [
        {"method": "nearest-centroids"},
        {"method": "fine-tuned"},
        {"method": "average-domain-weights"},
        {"method": "refined", "refined": {"steps": 0}},
    ],
)
def test_coefficients_of_other_domain_weights_are_refused(soup, how):
    """A card would say of it what is not so."""
    [recipe] = recipes_for(soup, WEIGHTS[:1])
    recipe = replace(recipe, how=how)
    check_recipe(recipe, soup)
    for learned in ({"method": "learned-coefficients"}, {"method": "refined", "refined": {"steps": 5}}):
        check_recipe(replace(recipe, how=learned, coefficients=(0.5,) * 4), soup)
    with pytest.raises(ValueError, match="coefficients are up to .* from those of its domain weights"):
        check_recipe(replace(recipe, domain_weights={3: 1.0}), soup)
    with pytest.raises(ValueError, match="of the recipe, domain weights sum to 0.5"):
        check_recipe(replace(recipe, domain_weights={3: 0.5}), soup)


def test_tensors_that_come_out_otherwise_are_not_written(soup, tmp_path):
    [recipe] = recipes_for(soup, WEIGHTS[:1])
    for write_it in (materialize, lambda recipe, soup, out: write_mergekit(soup, recipe, out)):
        with pytest.raises(StoreError, match="the recipe says the tensors aaaaaaaaaaaa"):
            write_it(replace(recipe, tensors="a" * 64), soup, tmp_path / "a")
        assert not (tmp_path / "a").exists()
