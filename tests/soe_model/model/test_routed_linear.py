"""PHATGOOSE's layer: each token takes its best LoRAs, by sqrt(I) times a cosine."""

import math

import pytest
import torch
from torch import nn

from soe_model.model.routed_linear import RoutedLinear, TokenGate, kept_of_scores, scores, top_weights

E, R, I, O, TOKENS = 5, 2, 8, 6, 9  # noqa: E741


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(*, experts=E, top=2, gates=None, order=slice(None)):
    linear = nn.Linear(I, O).requires_grad_(False)
    linear.weight[:], linear.bias[:] = drawn(O, I, seed=1), drawn(O, seed=2)
    return RoutedLinear(
        linear,
        down_ErI=drawn(E, R, I, seed=3)[:experts][order],
        up_EOr=drawn(E, O, R, seed=4)[:experts][order],
        gates_EI=(drawn(E, I, seed=5) if gates is None else gates)[:experts][order],
        scale=0.5,
        top=top,
    )


def with_lora(layer, token, weights):
    """The linear layer with some of each LoRA merged into its matrix."""
    change = sum(
        weight * layer.scale * up @ down
        for weight, up, down in zip(weights, layer.up_EOr, layer.down_ErI, strict=True)
    )
    return token @ (layer.linear.weight + change).T + layer.linear.bias


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_token_takes_the_two_that_score_highest():
    layer, tokens = make(), drawn(2, TOKENS, I)
    for token, found in zip(tokens.flatten(0, 1), layer(tokens).flatten(0, 1), strict=True):
        centred, gates = token - token.mean(), layer.gates_EI - layer.gates_EI.mean(1, keepdim=True)
        score = math.sqrt(I) * torch.cosine_similarity(centred, gates, dim=1)
        first, second = score.argsort(descending=True)[:2].tolist()
        weights = torch.zeros(E)
        weights[first] = 1 / (1 + math.exp(score[second] - score[first]))
        weights[second] = 1 - weights[first]
        torch.testing.assert_close(found, with_lora(layer, token, weights), rtol=1e-3, atol=1e-3)


def test_one_expert_is_that_lora():
    layer, tokens = make(experts=1), drawn(TOKENS, I)
    assert_same(layer(tokens), with_lora(layer, tokens, [1.0]))


def test_all_experts_with_equal_gates_are_their_mean():
    layer, tokens = make(top=E, gates=drawn(1, I).expand(E, -1)), drawn(TOKENS, I, seed=6)
    assert_same(layer(tokens), with_lora(layer, tokens, [1 / E] * E))


def test_the_order_of_experts_does_not_matter():
    tokens = drawn(TOKENS, I)
    assert_same(make(order=torch.tensor([3, 1, 4, 0, 2]))(tokens), make()(tokens))


def test_routing_is_sharp_where_the_cosine_over_the_root_would_be_uniform():
    """A public port divides the cosine by sqrt(I): the score is then at most 0.036, and each of two weighs a half."""
    inputs = 768
    gates = drawn(E, inputs)
    tokens = gates[[2, 4]] + 0.5 * drawn(2, inputs, seed=1)
    right = top_weights(scores(tokens, gates), 2)
    assert right.argmax(1).tolist() == [2, 4] and right.amax(1).min() > 0.99
    cosines = torch.cosine_similarity(tokens[:, None], gates, dim=2)
    wrong = top_weights(cosines / math.sqrt(inputs), 2)
    assert wrong.argmax(1).tolist() == [2, 4] and wrong.amax(1).max() < 0.52


@pytest.mark.parametrize(("size", "kept"), [(1.0, 1.0), (1e-2, 0.953), (1e-3, 0.302), (0.0, 0.0)])
def test_small_gates_lose_their_scores_to_layer_norms_epsilon(size, kept):
    token = drawn(1, 1000)
    gate = size * (token - token.mean()) / token.std(correction=0)
    assert kept_of_scores(gate).item() == pytest.approx(kept, abs=1e-3)
    assert scores(token, gate).item() == pytest.approx(kept * math.sqrt(1000), rel=1e-2)


def test_a_new_gate_lets_half_of_each_token_pass():
    gate, tokens = TokenGate(I), drawn(2, TOKENS, I)
    assert torch.equal(gate(tokens), tokens / 2)
    with torch.no_grad():
        gate.gate_I.copy_(drawn(I, seed=1))
    token = tokens[1, 3]
    assert_same(gate(tokens)[1, 3], token * torch.sigmoid(token @ gate.gate_I))
