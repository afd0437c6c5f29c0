"""The soup where its models are known otherwise: experts in another order, one expert, and equal experts."""

from dataclasses import replace

import pytest
import torch

from soe_model.model.low_rank import expanded
from tests.soe_model.methods.circles import N, draw, make
from tests.soe_model.oracle import assert_same_parameters, reference_of, take_the_same_steps

TARGETS = torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0, 1.0], [0.1, 0.2, 0.3, 0.4]])
BOTH_RANKS = pytest.mark.parametrize("rank", [None, 2])


def begun(*, rank=None, experts=N):
    one = make("soup", rank=rank, epsilon=1e-4)
    one = replace(one, soup=replace(one.soup, num_experts=experts))
    [run] = one.runs()
    return one, run, one.begin(run)


def held(learner):
    """What the bank holds of the experts, a row each: parameters, or factors."""
    experts = learner.bank.experts
    return experts.weights_Np if learner.soup.expert_rank is None else experts.factors_NQ


def expert(learner, number):
    """The parameters of one expert [P], by their names."""
    tensors, layout = learner.bank.expert_tensors(number), learner.backbone.layout
    if learner.soup.expert_rank is not None:
        return expanded(tensors, layout)
    return torch.cat([tensors[slot.name].flatten() for slot in layout])


def shared(learner):
    return learner.bank.shared_p[: learner.backbone.num_params]


@torch.no_grad()
def coefficients(learner):
    return learner.router.module(TARGETS)


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@BOTH_RANKS
def test_numbers_of_experts_are_names_only(rank):
    """At the start and in training, where the router's outputs are in the experts' order."""
    order = torch.tensor([2, 1, 0])
    one, run, learner = begun(rank=rank)
    _, _, renamed = begun(rank=rank)
    held(renamed).copy_(held(learner)[order])
    first = one.instantiate([learner], TARGETS)
    assert (one.instantiate([renamed], TARGETS) - first).abs().max() > 1e-3  # the experts alone are
    for parameter in renamed.router.module.output.parameters():
        parameter.data.copy_(parameter.data[order])
    assert_same(one.instantiate([renamed], TARGETS), first)
    for number in range(3):
        for each in (learner, renamed):
            each.train_step(*draw(run, number))
    last = one.instantiate([learner], TARGETS)
    torch.testing.assert_close(one.instantiate([renamed], TARGETS), last, rtol=1e-5, atol=5e-6)
    assert (last - first).abs().max() > 1e-3


@BOTH_RANKS
def test_one_expert_is_added_as_often_as_its_coefficient_says(rank):
    one, _, learner = begun(rank=rank, experts=1)
    alpha_W1, expert_P = coefficients(learner), expert(learner, 0)
    assert alpha_W1.shape == (3, 1) and (alpha_W1 * expert_P).abs().max() > 1e-3
    assert_same(one.instantiate([learner], TARGETS), shared(learner) + alpha_W1 * expert_P)


def test_one_expert_is_trained_as_by_autograd():
    _, run, learner = begun(experts=1)
    reference = reference_of(learner)
    take_the_same_steps(learner, reference, [draw(run, number) for number in range(3)])
    assert_same_parameters(learner, reference)


@BOTH_RANKS
def test_equal_experts_are_one_with_the_sum_of_the_coefficients(rank):
    one, _, learner = begun(rank=rank)
    held(learner).copy_(held(learner)[:1].expand(N, -1).clone())
    total_W1 = coefficients(learner).sum(1, keepdim=True)
    expected = shared(learner) + total_W1 * expert(learner, 0)
    assert (expected[0] - expected[1]).abs().max() > 1e-3  # the sums are not the same
    assert_same(one.instantiate([learner], TARGETS), expected)


@BOTH_RANKS
@pytest.mark.parametrize("total", [0.0, 1.5])
def test_equal_experts_are_one_model_where_that_sum_is_the_same(rank, total):
    """Though the coefficients themselves differ from target to target."""
    one, _, learner = begun(rank=rank)
    held(learner).copy_(held(learner)[:1].expand(N, -1).clone())
    output = learner.router.module.output
    output.weight.data -= output.weight.data.mean(0)
    output.bias.data.copy_(torch.tensor([total + 0.2, 0.3, -0.5]))
    alpha_WN = coefficients(learner)
    assert (alpha_WN[0] - alpha_WN[1]).abs().max() > 0.05
    expected = shared(learner) + total * expert(learner, 0)
    assert_same(one.instantiate([learner], TARGETS), expected.expand(3, -1))
