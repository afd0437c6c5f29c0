"""Averages of specialists of one soup, as recipes.

An instance is linear in the coefficients, so averaging coefficients *is* averaging models; averaging domain weights is
not, because the router lies between, and has another name.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from soe_model.files.soup import SoupOfExperts
from soe_model.specialists.recipe import (
    BLEND_COEFFICIENTS,
    BLEND_DOMAIN_WEIGHTS,
    FINE_TUNED,
    Recipe,
    check_recipe,
    dense,
    make_recipe,
)
from storage_schema.errors import UserError


def blend(recipes: Sequence[Recipe], shares: Sequence[float], soup: SoupOfExperts, *, of: str) -> Recipe:
    """The mean of specialists of one soup.

    Args:
        shares: of each; they are divided by their sum.
        of: ``average-coefficients`` is the mean of the models themselves, up to rounding;
            ``average-domain-weights`` is the specialist of the mean mixture, another model.

    Raises ValueError for shares that do not fit, recipes of other soups, or domain weights that are not there.
    """
    shares_R = np.asarray(shares, np.float64)
    if len(recipes) < 2 or shares_R.shape != (len(recipes),):
        raise UserError(
            f"{len(recipes)} recipes and {len(shares_R)} shares: give two recipes or more, a share each."
        )
    with np.errstate(over="ignore", invalid="ignore"):
        total = shares_R.sum()
    if not (shares_R >= 0).all() or not 0 < total < np.inf:
        raise UserError(
            f"the shares are {list(shares)}; they must be at least 0, not all 0, and of a finite sum. Give smaller or "
            "larger ones: they are divided by their sum."
        )
    shares_R = shares_R / total
    for recipe in recipes:
        check_recipe(recipe, soup)
        if recipe.how.get("method") == FINE_TUNED:
            raise UserError("a fine-tuned specialist has no coefficients of its own to average.")
    how = {"method": of, "shares": shares_R.tolist(), "of": [recipe.tensors for recipe in recipes]}
    if of == BLEND_COEFFICIENTS:
        mean_N = shares_R @ np.array([recipe.coefficients for recipe in recipes], np.float64)
        return make_recipe(soup, coefficients_N=torch.from_numpy(mean_N).float(), how=how)
    if of != BLEND_DOMAIN_WEIGHTS:
        raise UserError(f"of is {of!r}; it must be {BLEND_COEFFICIENTS!r} or {BLEND_DOMAIN_WEIGHTS!r}.")
    mean_K = torch.zeros(soup.config.num_domains, dtype=torch.float64)
    for share, recipe in zip(shares_R, recipes, strict=True):
        if recipe.domain_weights is None:
            raise UserError("a specialist that was not made from domain weights has none to average.")
        mean_K += share * dense(recipe, soup).double()
    weights_K = mean_K.float()
    coefficients_N = soup.coefficients(weights_K[None])[0]
    return make_recipe(soup, coefficients_N=coefficients_N, domain_weights_K=weights_K, how=how)
