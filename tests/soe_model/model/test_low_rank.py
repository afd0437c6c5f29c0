"""Low-rank experts (section 2.6) against plain autograd through ``S + sum_j coefficient_j A_j B_jᵀ``."""

from collections import Counter

import pytest
import torch
from torch.func import functional_call

from soe_model.model.flat_module import unflatten
from soe_model.model.low_rank import LowRankExperts, expanded, factor_slots
from soe_model.model.sharding import Sharding
from tests.soe_model.training.test_trainer import ADAM, B, L, W, _Losses, make_batch, make_trainer

R = 3


def instances_of(trainer, shared_P, factors_NQ, coefficients_WN):
    """Written with whole experts."""
    slots = factor_slots(trainer.backbone.layout, R)
    experts = []
    for row in factors_NQ:
        factors = unflatten(row, slots)
        parts = [
            (factors[f"{slot.name}.A"] @ factors[f"{slot.name}.B"].T).flatten()
            if f"{slot.name}.A" in factors
            else torch.zeros(slot.size)
            for slot in trainer.backbone.layout
        ]
        experts.append(torch.cat(parts))
    return shared_P + coefficients_WN @ torch.stack(experts)


def test_a_step_equals_autograd():
    trainer = make_trainer(expert_rank=R)
    num_params, model = trainer.backbone.num_params, make_trainer().backbone.module
    shared = trainer.bank.shared_p[:num_params].clone().requires_grad_()
    factors = trainer.bank.experts.factors_NQ.clone().requires_grad_()
    names = [name for name, _ in trainer.router.module.named_parameters()]
    router = [p.detach().clone().requires_grad_() for p in trainer.router.module.parameters()]
    optimizer = torch.optim.Adam(
        [{"params": shared}, {"params": factors}, {"params": router}], eps=ADAM.epsilon
    )
    for number in range(4):
        tokens, mixture, weights = make_batch(number)
        coefficients = functional_call(trainer.router.module, dict(zip(names, router, strict=True)), weights)
        loss = 0
        for w, instance in enumerate(instances_of(trainer, shared, factors, coefficients)):
            values = {f"model.{k}": v for k, v in unflatten(instance, trainer.backbone.layout).items()}
            loss = loss + functional_call(_Losses(model), values, tokens[mixture == w]).sum() / (B * L)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_([shared, factors, *router], 0.5)
        rates = trainer.training
        of_groups = rates.learning_rate, rates.expert_learning_rate, rates.router_learning_rate
        for group, rate in zip(optimizer.param_groups, of_groups, strict=True):
            group["lr"] = rate
        result = trainer.train_step(tokens, mixture, weights)
        optimizer.step()
        assert abs(result.loss - loss.item()) < 1e-5
        assert abs(result.gradient_norm - norm.item()) < 1e-5 * max(1, norm.item())
    torch.testing.assert_close(trainer.bank.shared_p[:num_params], shared.detach(), rtol=1e-5, atol=5e-6)
    torch.testing.assert_close(trainer.bank.experts.factors_NQ, factors.detach(), rtol=1e-5, atol=5e-6)


def test_gradients_come_together_and_are_formed_once_a_step(monkeypatch):
    calls = Counter()
    for owner, name in ((Sharding, "gather"), (LowRankExperts, "_gradients_of")):
        counted = getattr(owner, name)

        def counting(*arguments, counted=counted):
            calls[counted.__name__] += 1
            return counted(*arguments)

        monkeypatch.setattr(owner, name, counting)
    trainer = make_trainer(expert_rank=R)
    trainer.train_step(*make_batch(0))
    assert calls == {"gather": 1, "_gradients_of": len(trainer.bank.experts.matrices)}


def test_an_expert_is_small_and_expands_to_what_it_stands_for():
    trainer = make_trainer(expert_rank=R)
    layout = trainer.backbone.layout
    for number in range(2):
        tensors = trainer.bank.expert_tensors(number)
        assert sum(t.numel() for t in tensors.values()) < 0.7 * trainer.backbone.num_params
        coefficients = torch.zeros(1, 4)
        coefficients[0, number] = 1.0
        instance = trainer.bank.instances(coefficients)[0]
        shared = trainer.bank.shared_p[: trainer.backbone.num_params]
        torch.testing.assert_close(expanded(tensors, layout), instance - shared, rtol=1e-4, atol=1e-6)


def test_without_a_spread_every_instance_begins_at_shared_and_still_learns():
    trainer = make_trainer(expert_rank=R, expert_std=0.0)
    shared = trainer.bank.shared_p[: trainer.backbone.num_params].clone()
    assert torch.equal(trainer.bank.instances(torch.randn(W, 4)), shared.expand(W, -1))
    for number in range(3):
        trainer.train_step(*make_batch(number))
    first, second = trainer.bank.instances(torch.eye(4)[:2])
    assert (first - second).abs().max() > 1e-5


def test_a_rank_that_no_matrix_exceeds_is_refused():
    with pytest.raises(ValueError, match="expert_rank is 1000: no matrix"):
        make_trainer(expert_rank=1000)
    with pytest.raises(ValueError, match="expert_rank is 0"):
        make_trainer(expert_rank=0)
