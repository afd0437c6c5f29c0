"""A soup of five domains and four experts, trained for five steps, and specialists of it."""

import pytest
import torch

from soe_model.files.write_soup import write_soup
from soe_model.specialists.recipe import make_recipe
from soe_model.specialists.specialist_files import write_specialist
from storage_schema.stage import open_stage
from storage_schema.tree import Tree
from tests.soe_model.training.test_trainer import BACKBONE, K, make_batch, make_trainer
from tests.toy_store import make_store

WEIGHTS = torch.tensor([[0.5, 0.5, 0, 0, 0], [0, 0, 0.25, 0.25, 0.5]])


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A trained soup on disk, with its trainer; neither is to be changed."""
    folder = tmp_path_factory.mktemp("soup")
    store = make_store(folder / "store", [40] * K)
    trainer = make_trainer()
    for number in range(5):
        trainer.train_step(*make_batch(number))
    stage = open_stage(
        folder / "soup",
        kind="soup",
        configuration={
            "soup": {
                "backbone": BACKBONE,
                "num_experts": 4,
                "num_domains": K,
                "router_hidden": 6,
                "expert_std": 0.05,
            }
        },
        inputs={},
    )
    write_soup(
        stage.work,
        trainer,
        tree=Tree.read(store / "domains/tree.arrow"),
        tokenizer=store / "tokenizer/tokenizer.json",
    )
    stage.finish({})
    return folder / "soup", trainer


def recipes_for(soup, weights=WEIGHTS):
    coefficients = soup.coefficients(weights)
    return [
        make_recipe(
            soup, coefficients_N=c, domain_weights_K=w, how={"method": "nearest-centroids", "rule": "flat"}
        )
        for c, w in zip(coefficients, weights, strict=True)
    ]


def write(soup, folder, weights=WEIGHTS[0], **options):
    [recipe] = recipes_for(soup, weights[None])
    instance = soup.instances(recipe.coefficients_N[None])[0]
    return write_specialist(soup, folder, recipe, instance, **options)
