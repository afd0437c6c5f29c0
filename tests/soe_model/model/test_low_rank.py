"""Low-rank experts (section 2.6) against the reference, whose experts are the products ``A_j B_jᵀ``."""

from collections import Counter
from functools import partial

import pytest
import torch

from soe_model.model.flat_module import unflatten
from soe_model.model.low_rank import LowRankExperts, expanded, factor_slots
from soe_model.model.sharding import Sharding
from tests.soe_model.oracle import assert_same_parameters, reference_of, take_the_same_steps
from tests.soe_model.training.test_trainer import W, make_batch, make_trainer

R = 3


def whole_experts(trainer, factors_NQ):
    """The experts [N, P] that the factors stand for."""
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
    return torch.stack(experts)


def test_steps_are_those_of_the_reference():
    trainer = make_trainer(expert_rank=R)
    reference = reference_of(trainer, trainer.bank.experts.factors_NQ, expand=partial(whole_experts, trainer))
    take_the_same_steps(trainer, reference, [make_batch(number) for number in range(4)])
    assert_same_parameters(trainer, reference)


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
