"""A specialist of a wide soup, made once."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from soe_model.files.soup import SoupOfExperts
from soe_model.specialists.recipe import make_recipe
from soe_model.specialists.specialist_files import MODEL, write_specialist
from tests.soe_model.wide_soup import write_wide_soup


@pytest.fixture(scope="session")
def wide(tmp_path_factory):
    """A soup and a specialist of it, with a reading of both."""
    folder = tmp_path_factory.mktemp("theta")
    soup = SoupOfExperts.open(write_wide_soup(folder / "soup", num_experts=3, width=64))
    recipe = make_recipe(soup, coefficients_N=torch.tensor([0.5, -2.0, 0.25]), how={"method": "given"})
    instance_P = soup.instances(recipe.coefficients_N[None])[0]
    write_specialist(soup, folder / "specialist", recipe, instance_P)
    return SimpleNamespace(
        folder=folder, soup=soup, instance_P=instance_P, tensors=load_file(folder / "specialist" / MODEL)
    )
