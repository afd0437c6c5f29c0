"""The reference itself, against the words of the paper: equation 2, plain training, and Adam written out."""

import pytest
import torch

from soe_model.model.backbone import token_losses
from soe_model.reference import Reference, combine, loss
from tests.soe_model.oracle import reference_of
from tests.soe_model.training.test_trainer import ADAM, K, W, make_batch, make_trainer


def draw(number):
    tokens, _, weights = make_batch(number)
    return weights.double(), tokens.unflatten(0, (W, -1))


def test_a_model_is_shared_plus_the_weighted_experts():
    S, E = torch.tensor([1.0, 2.0]), torch.tensor([[1.0, 0.0], [0.0, 10.0], [5.0, 5.0]])
    assert combine(S, E, torch.tensor([2.0, -1.0, 0.0])).tolist() == [3.0, -8.0]
    assert combine(S, E, torch.eye(3)).tolist() == [[2, 2], [1, 12], [6, 7]]


def test_the_loss_of_a_flat_vector_is_that_of_the_module_that_has_it():
    backbone, tokens = make_trainer().backbone, make_batch(0)[0]
    expected = token_losses(backbone.module, tokens).mean()
    torch.testing.assert_close(loss(backbone.module, backbone.params_P.clone(), tokens), expected)


def test_without_experts_a_step_is_plain_training():
    reference, other = (reference_of(make_trainer(num_experts=0)) for _ in range(2))
    model = other.backbone
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, eps=ADAM.epsilon)
    for number in range(3):
        h, x = draw(number)
        value = token_losses(model, x.flatten(0, 1)).double().mean()
        optimizer.zero_grad()
        value.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        assert reference.step(h, x) == pytest.approx((value.item(), norm.item()), rel=1e-5)
    trained = torch.nn.utils.parameters_to_vector(model.parameters())
    torch.testing.assert_close(reference.S, trained, rtol=1e-4, atol=1e-6)


def test_the_first_step_moves_each_part_by_adams_formula_at_its_own_rate():
    trainer = make_trainer()
    reference = reference_of(trainer)
    h, x = draw(0)
    S, E = (z.detach().clone().requires_grad_() for z in (reference.S, reference.E))
    alpha = reference.phi(h)
    value = sum(loss(reference.backbone, S + alpha[w] @ E, x[w]) for w in range(W)) / W
    gradients = torch.autograd.grad(value, [S, E, *reference.phi.parameters()])
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    assert reference.step(h, x) == pytest.approx((value.item(), norm.item()))
    scale = min(1.0, 0.5 / norm)
    for before, gradient, after, rate in zip(
        (S, E), gradients, (reference.S, reference.E), (1e-2, 5e-3), strict=False
    ):
        clipped = scale * gradient
        torch.testing.assert_close(after, before - rate * clipped / (clipped.abs() + ADAM.epsilon))


def test_the_defaults_are_the_papers():
    """Table 3: one rate of 1e-4, and a clip of 0.1."""
    phi = torch.nn.Linear(K, 2)
    reference = Reference(make_trainer().backbone.module, phi, torch.zeros(3), torch.zeros(2, 3))
    assert [group["lr"] for group in reference.optim.param_groups] == [1e-4] * 3 and reference.clip == 0.1
    assert reference.optim.defaults["betas"] == (0.9, 0.999)
