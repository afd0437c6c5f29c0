"""Recipes: a few kilobytes that rebuild every bit, and what is refused."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from soe_model.recipe import (
    BLEND_COEFFICIENTS,
    BLEND_DOMAIN_WEIGHTS,
    Recipe,
    blend,
    check_recipe,
    make_recipe,
    read_recipe,
)
from soe_model.soup import SoupOfExperts
from soe_model.specialization import MODEL, materialize, verify_specialist, write_specialist
from storage_schema.manifest import StoreError
from tests.soe_model.test_soup import WEIGHTS, made, recipes_for, write  # noqa: F401


@pytest.fixture
def soup(made):  # noqa: F811
    return SoupOfExperts.open(made[0])


def test_the_recipe_alone_rebuilds_every_file(soup, tmp_path):
    write(soup, tmp_path / "a")
    alone = tmp_path / "mailed.json"
    shutil.copyfile(tmp_path / "a/specialist.json", alone)
    materialize(read_recipe(alone), soup, tmp_path / "b")
    for name in (MODEL, "config.json", "tokenizer.json", "generation_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert verify_specialist(tmp_path / "b", soup).problems == ()


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


def test_one_altered_bit_is_found_and_named(soup, tmp_path):
    write(soup, tmp_path / "a")
    tensors = load_file(tmp_path / "a" / MODEL)
    name = sorted(tensors)[3]
    tensors[name].view(-1)[2] = torch.nextafter(tensors[name].view(-1)[2], torch.tensor(9.0))
    save_file(tensors, tmp_path / "a" / MODEL, metadata={"format": "pt"})
    problems = " ".join(verify_specialist(tmp_path / "a", soup).problems)
    assert f"{name} differs in 1 of" in problems and "model.safetensors was altered" in problems
    del tensors[name]
    save_file(tensors | {"more": torch.zeros(2)}, tmp_path / "a" / MODEL)
    problems = " ".join(verify_specialist(tmp_path / "a", soup).problems)
    assert f"the tensor {name} is missing" in problems and "there is a tensor more more" in problems


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


def test_tensors_that_come_out_otherwise_are_not_written(soup, tmp_path):
    [recipe] = recipes_for(soup, WEIGHTS[:1])
    with pytest.raises(StoreError, match="the recipe says the tensors aaaaaaaaaaaa"):
        materialize(replace(recipe, tensors="a" * 64), soup, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_averaging_coefficients_averages_the_models(soup, tmp_path):
    recipes = recipes_for(soup)
    first, second = soup.instances(torch.stack([recipe.coefficients_N for recipe in recipes]))
    blended = blend(recipes, [3, 1], soup, of=BLEND_COEFFICIENTS)
    instance = soup.instances(blended.coefficients_N[None])[0]
    torch.testing.assert_close(instance, 0.75 * first + 0.25 * second, rtol=0, atol=1e-6)
    assert blended.domain_weights is None
    write_specialist(soup, tmp_path / "a", blended, instance)
    assert verify_specialist(tmp_path / "a", soup).problems == ()


def test_averaging_domain_weights_is_the_specialist_of_the_mean_mixture(soup):
    recipes = recipes_for(soup)
    blended = blend(recipes, [1, 1], soup, of=BLEND_DOMAIN_WEIGHTS)
    mean = WEIGHTS.mean(0)
    torch.testing.assert_close(blended.coefficients_N, soup.coefficients(mean[None])[0], rtol=0, atol=1e-6)
    models = blend(recipes, [1, 1], soup, of=BLEND_COEFFICIENTS)
    assert (blended.coefficients_N - models.coefficients_N).abs().max() > 1e-4  # the router is not linear


def test_blends_that_make_no_sense_are_refused(soup):
    recipes = recipes_for(soup)
    for shares, message in (([1], "2 recipes and 1 shares"), ([0, 0], "not all 0"), ([1, -1], "at least 0")):
        with pytest.raises(ValueError, match=message):
            blend(recipes, shares, soup, of=BLEND_COEFFICIENTS)
    given = make_recipe(soup, coefficients_N=torch.ones(4), how={"method": "given"})
    with pytest.raises(ValueError, match="has none to average"):
        blend([given, given], [1, 1], soup, of=BLEND_DOMAIN_WEIGHTS)
    tuned = replace(given, how={"method": "fine-tuned"})
    with pytest.raises(ValueError, match="fine-tuned"):
        blend([tuned, given], [1, 1], soup, of=BLEND_COEFFICIENTS)
    with pytest.raises(ValueError, match="its recipe does not rebuild it"):
        materialize(tuned, soup, None)
