"""Whether a bank specialises: the numbers of the log against what they are defined as."""

import pytest
import torch

from soe_model.training.specialisation import Specialisation, specialisation
from tests.soe_model.training.test_trainer import K, make_batch, make_trainer

VARIANTS = {
    "adam": {},
    "adam-bf16-moments": {"optimizer": "adam-bf16-moments"},
    "low-rank": {"expert_rank": 3},
}


def numbers(alpha_MN, experts_NP):
    """As they are defined, one instance and one pair after the other."""
    mean_N = alpha_MN.mean(0)
    moved = [torch.linalg.norm((alpha_N - mean_N) @ experts_NP) for alpha_N in alpha_MN]
    cosines = [
        torch.nn.functional.cosine_similarity(one, other, dim=0).abs()
        for i, one in enumerate(experts_NP)
        for other in experts_NP[:i]
    ]
    return Specialisation(
        coefficient_spread=(torch.sqrt(((alpha_MN - mean_N) ** 2).mean() / (alpha_MN**2).mean())).item(),
        instance_spread=(torch.stack(moved).mean() / torch.linalg.norm(mean_N @ experts_NP)).item(),
        expert_cosine=torch.stack(cosines).mean().item(),
    )


def assert_same(found, expected, rel):
    for name, value in vars(expected).items():
        assert getattr(found, name) == pytest.approx(value, rel=rel), name


def test_the_numbers_are_those_of_the_definitions():
    generator = torch.Generator().manual_seed(0)
    alpha_MN = torch.randn(7, 5, generator=generator).double() + 1
    experts_NP = torch.randn(5, 300, generator=generator).double()
    assert_same(specialisation(alpha_MN, experts_NP @ experts_NP.T), numbers(alpha_MN, experts_NP), 1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_trainer_s_numbers_are_those_of_its_own_instances(variant):
    """Of all of its parameters, whatever the experts are held as."""
    trainer = make_trainer(**VARIANTS[variant])
    for number in range(3):
        trainer.train_step(*make_batch(number))
    weights_MK = make_batch(9, batch_size=8, mixtures=8)[2]
    with torch.no_grad():
        alpha_MN = trainer.router.module(weights_MK)
        count = trainer.soup.num_experts
        [shared, *instances] = trainer.bank.instances(torch.cat([torch.zeros(1, count), torch.eye(count)]))
        before = trainer.router.params_P.clone()
        found = trainer.specialisation(weights_MK)
    assert_same(found, numbers(alpha_MN.double(), (torch.stack(instances) - shared).double()), 1e-4)
    assert torch.equal(trainer.router.params_P, before) and found.instance_spread > 0


def test_low_rank_experts_are_taken_a_few_at_a_time(monkeypatch):
    trainer = make_trainer(expert_rank=3)
    trainer.train_step(*make_batch(0))
    whole = trainer.bank.gram()
    monkeypatch.setattr("soe_model.model.low_rank.GRAM_ELEMENTS", 1)
    torch.testing.assert_close(trainer.bank.gram(), whole)


def test_experts_on_one_line_and_equal_coefficients_are_seen():
    line = torch.outer(torch.tensor([1.0, -2.0, 0.5]), torch.tensor([3.0, 4.0]))
    apart = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    found = specialisation(apart, line @ line.T)
    assert found.expert_cosine == pytest.approx(1) and found.coefficient_spread == pytest.approx(1)
    same = specialisation(torch.ones(4, 3), torch.eye(3))
    assert same == Specialisation(coefficient_spread=0.0, instance_spread=0.0, expert_cosine=0.0)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_where_there_is_nothing_to_compare_the_numbers_are_zero(count):
    """No experts, one, or all zero as they are at the start."""
    nothing = specialisation(torch.rand(4, count), torch.zeros(count, count))
    assert nothing.instance_spread == nothing.expert_cosine == 0
    assert make_trainer(num_experts=0).specialisation(torch.full((2, K), 1 / K)) == Specialisation(
        coefficient_spread=0.0, instance_spread=0.0, expert_cosine=0.0
    )
