"""Averages of specialists: of coefficients it is the mean of the models, of domain weights another model."""

from dataclasses import replace

import pytest
import torch

from soe_model.specialists.averaging import blend
from soe_model.specialists.recipe import BLEND_COEFFICIENTS, BLEND_DOMAIN_WEIGHTS, make_recipe
from soe_model.specialists.specialist_files import materialize, write_specialist
from soe_model.specialists.verification import verify_specialist
from tests.soe_model.toy_soup import WEIGHTS, recipes_for


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
    for shares, message in (
        ([1], "2 recipes and 1 shares"),
        ([0, 0], "not all 0"),
        ([1, -1], "at least 0"),
        ([1e308, 1e308], r"the shares are \[1e\+308, 1e\+308\].*of a finite sum"),
    ):
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
