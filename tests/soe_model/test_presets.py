"""Presets that come from the paper, and settings that no run can have."""

import math
from dataclasses import replace

import pytest
import torch

from soe_model.optimizers import AdamConfig
from soe_model.presets import PRESETS, SoupConfig, TrainingConfig, preset
from tests.soe_model.training.test_trainer import BACKBONE

SOUP = SoupConfig(backbone=BACKBONE, num_experts=4, num_domains=5)
TRAINING = TrainingConfig(steps=10, warmup_steps=1)
INFINITE = math.inf


def test_the_papers_presets_are_the_papers():
    """Table 3; n = 128 (section 3), and 32 in the 335 M model of Figure 5."""
    of_paper = {name: preset(name) for name in PRESETS if name.startswith("paper")}
    assert {name: chosen.num_experts for name, chosen in of_paper.items()} == {
        "paper-35m": 128,
        "paper-55m": 128,
        "paper-110m": 128,
        "paper-335m": 32,
    }
    for chosen in of_paper.values():
        training = chosen.training
        assert (training.batch_size, training.sequence_length, training.support_size) == (128, 1024, 4)
        assert (training.learning_rate, chosen.generic_learning_rate) == (1e-4, 3e-4)
        assert (training.warmup_steps, training.gradient_clip) == (2000, 0.1)
        assert (training.adam.beta1, training.adam.beta2) == (0.9, 0.999)


@pytest.mark.parametrize("times", [0.25, 1, 2])
@pytest.mark.parametrize("name", PRESETS)
def test_the_coefficients_start_small_enough_for_the_rates(name, times):
    """An instance moves (1 + sum of the absolute coefficients) times as far as the rates say, with any number."""
    chosen, generator = preset(name), torch.Generator().manual_seed(0)
    num_experts = int(times * chosen.num_experts)
    soup = SoupConfig(
        backbone=BACKBONE,
        num_experts=num_experts,
        num_domains=1024,
        router_hidden=chosen.router_hidden,
        router_input_scale=chosen.router_input_scale,
        router_output_scale=chosen.output_scale(num_experts),
    )
    sums = []
    for seed in range(3):
        centroids_KD = torch.nn.functional.normalize(torch.randn(1024, 384, generator=generator))
        drawn = torch.rand(64, 1024, generator=generator).topk(chosen.training.support_size)
        weights_WK = torch.zeros(64, 1024).scatter_(
            1, drawn.indices, torch.rand(drawn.values.shape, generator=generator)
        )
        router = soup.new_router(seed, centroids_KD)
        sums.append(router(weights_WK / weights_WK.sum(1, keepdim=True)).abs().sum(1).mean().item())
    assert 0.6 < sum(sums) / 3 < 2.5


def test_a_warm_up_longer_than_the_run_is_refused_with_the_way_out():
    training = preset("paper-110m").training
    with pytest.raises(
        ValueError, match="warmup_steps is 2000 and the run has 1000 steps.*Give warmup_steps=333"
    ):
        replace(training, steps=1000)
    replace(training, steps=2000)  # as long as the run


@pytest.mark.parametrize("value", [0, -1e-3, INFINITE, math.nan])
@pytest.mark.parametrize(
    "name", ["learning_rate", "expert_learning_rate", "router_learning_rate", "gradient_clip"]
)
def test_a_rate_is_positive_and_finite(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}; it must be positive and finite"):
        replace(TRAINING, **{name: value})


@pytest.mark.parametrize(
    ("config", "name", "value", "bound"),
    [
        (TRAINING, "steps", 0, "at least 1"),
        (TRAINING, "batch_size", 2.5, "at least 1"),
        (TRAINING, "micro_batch_size", 0, "at least 1"),
        (TRAINING, "warmup_steps", -1, "at least 0"),
        (TRAINING, "final_learning_rate_fraction", 1.5, "between 0 and 1"),
        (TRAINING, "final_learning_rate_fraction", math.nan, "between 0 and 1"),
        (SOUP, "num_experts", -1, "0 .the generic twin. or more"),
        (SOUP, "num_domains", 0, "at least 1"),
        (SOUP, "router_hidden", 0, "at least 1"),
        (SOUP, "router_input_scale", 0.0, "positive and finite"),
        (SOUP, "router_output_scale", -0.1, "at least 0 and finite"),
        (SOUP, "expert_std", INFINITE, "at least 0 and finite"),
        (AdamConfig(), "beta1", 1.0, "at least 0 and below 1"),
        (AdamConfig(), "beta2", -0.1, "at least 0 and below 1"),
        (AdamConfig(), "epsilon", 0.0, "positive and finite"),
    ],
)
def test_a_value_out_of_bounds_is_named_with_its_bound(config, name, value, bound):
    with pytest.raises(ValueError, match=f"{name} is {value}; it must be {bound}"):
        replace(config, **{name: value})


def test_a_soup_that_could_not_begin_to_learn_is_refused():
    with pytest.raises(ValueError, match="router_output_scale and expert_std are both 0"):
        replace(SOUP, router_output_scale=0.0, expert_std=0.0)


def test_over_fewer_steps_the_warm_up_is_a_third_of_them_at_most():
    training = preset("tiny").training
    assert [training.over(steps).warmup_steps for steps in (90, 360, 6000)] == [30, 120, 300]
    asked = replace(training, steps=90, warmup_steps=80)
    assert asked.over(90) == asked
