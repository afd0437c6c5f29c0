"""Arrow's model where it is known without its router: one LoRA with all weight, and equal LoRAs."""

import pytest
import torch

from soe_model.methods.arrow import arrow_model
from soe_model.methods.lora_pool import lora_model, loras_of
from tests.soe_model.methods.circles import some_models
from tests.soe_model.methods.test_phatgoose import E, R, assert_same, logits, pool


def fresh_base():
    one = pool("arrow")
    return one.base(some_models(one, 1)[0])


def loras(number):
    """Of a size that shows, each with other parameters."""
    found = [lora_model(fresh_base(), rank=R, seed=seed) for seed in range(number)]
    generator = torch.Generator().manual_seed(7)
    for module in found:
        for layer in loras_of(module).values():
            for factor in (layer.lora_A, layer.lora_B):
                weight = factor["default"].weight
                weight.data.copy_(torch.randn(weight.shape, generator=generator))
    return found


@pytest.mark.parametrize("chosen", range(E))
def test_a_lora_with_all_weight_is_the_model(chosen):
    """The prototypes of the others are zeros, and its own so long that the softmax gives it all."""
    modules = loras(E)
    model = arrow_model(fresh_base(), modules)
    mixed = logits(model)  # the prototypes are made then
    for layer in loras_of(model).values():
        prototypes = layer.lora_arrow["arrow_router"].prototypes
        assert prototypes.shape == (E, layer.in_features)
        prototypes[:chosen] = 0
        prototypes[chosen] *= 1e6
        prototypes[chosen + 1 :] = 0
    assert_same(logits(model), logits(modules[chosen]))
    assert (mixed - logits(modules[chosen])).abs().max() > 0.02
    assert (logits(modules[chosen - 1]) - logits(modules[chosen])).abs().max() > 0.02


@pytest.mark.parametrize("number", [2, E, 5])
def test_equal_loras_are_one_of_them(number):
    """Of five a token takes three."""
    first, other = loras(2)
    assert_same(logits(arrow_model(fresh_base(), [first] * number)), logits(first))
    unequal = [first] * (number - 1) + [other]
    assert (logits(arrow_model(fresh_base(), unequal)) - logits(first)).abs().max() > 0.02
