"""CRISP and domain experts: which runs they train, which model they give, and what they cost."""

import pytest
import torch

from soe_model.methods.groups import coarse_groups
from tests.soe_model.methods.circles import (
    GENERIC_K,
    STEPS,
    B,
    Fixed,
    K,
    L,
    draw,
    make,
    some_models,
    trained,
    windows,
)

GROUPS = torch.tensor([0, 0, 1, 1])
UNEVEN_K = torch.tensor([0.1, 0.2, 0.3, 0.4])
TARGETS = torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0, 1.0], [0.25, 0.25, 0.25, 0.25]])


def choosing(number=4, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return [windows(weights_K, number, generator) for weights_K in TARGETS]


def test_crisps_run_is_the_twins_on_the_targets_weights_bit_for_bit():
    one = make("crisp", steps=6)
    found = one.instantiate(trained(one, TARGETS), TARGETS)
    for model, weights_K in zip(found, TARGETS, strict=True):
        twin = make("generic", steps=6, generic_K=weights_K)
        assert torch.equal(model, twin.instantiate(trained(twin), TARGETS)[0])
    assert not torch.equal(found[0], found[1])


def test_crisp_has_no_models_but_those_of_its_targets():
    one = make("crisp")
    with pytest.raises(ValueError, match="give the targets' domain weights"):
        one.runs()
    with pytest.raises(ValueError, match="sum to 2"):
        one.runs(torch.full((1, K), 0.5))
    with pytest.raises(ValueError, match="1 models for 3 targets"):
        one.instantiate([Fixed(some_models(one, 1)[0])], TARGETS)


def test_crisp_costs_nothing_before_a_target_is_there_and_a_pretraining_then():
    cost, twin = make("crisp").cost(), make("generic").cost()
    assert (cost.pretrained_size, cost.pretraining_tokens, cost.pretraining_flops) == (0, 0, 0)
    assert cost.specialist_flops == twin.pretraining_flops
    assert cost.specialist_tokens == twin.pretraining_tokens == STEPS * B * L
    assert (twin.specialist_tokens, twin.specialist_flops) == (0, 0)


def test_an_expert_learns_the_generic_mixture_within_its_group():
    one = make("domain-experts", generic_K=UNEVEN_K, group_K=GROUPS)
    found = torch.stack([run.domain_weights_K for run in one.runs()])
    expected = torch.tensor([[1 / 3, 2 / 3, 0, 0], [0, 0, 3 / 7, 4 / 7]])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(one.masses(TARGETS), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]))
    alone = torch.stack([run.domain_weights_K for run in make("domain-experts", generic_K=UNEVEN_K).runs()])
    torch.testing.assert_close(alone, torch.eye(K))


def test_one_group_is_the_twin():
    one = make("domain-experts", steps=4, generic_K=UNEVEN_K, group_K=torch.zeros(K, dtype=torch.int64))
    twin = make("generic", steps=4, generic_K=UNEVEN_K)
    [run], [of_twin] = one.runs(), twin.runs()
    assert (run.soup, run.training) == (of_twin.soup, of_twin.training)
    torch.testing.assert_close(run.domain_weights_K, of_twin.domain_weights_K)
    found = one.instantiate(trained(one), TARGETS, choosing())
    torch.testing.assert_close(found, twin.instantiate(trained(twin), TARGETS))


def test_the_model_of_the_smallest_loss_is_taken_in_whatever_order_they_come():
    one = make("domain-experts")
    models = some_models(one, 5)
    of_targets = choosing()
    losses = torch.tensor([[one.loss(m, windows_nL1).mean() for m in models] for windows_nL1 in of_targets])
    expected = models[losses.argmin(1)]
    assert len(losses.argmin(1).unique()) > 1  # so that one model for all would show
    for order in (torch.arange(5), torch.tensor([3, 0, 4, 2, 1])):
        found = one.instantiate([Fixed(models[i]) for i in order], TARGETS, of_targets)
        assert torch.equal(found, expected)
    broken = torch.full_like(models[0], torch.nan)
    assert torch.equal(one.instantiate(map(Fixed, [broken, *models]), TARGETS, of_targets), expected)
    same = one.instantiate([Fixed(models[0])] * 3, TARGETS, of_targets)
    assert torch.equal(same, models[:1].expand(3, -1))


def test_only_the_first_windows_choose():
    one = make("domain-experts", choosing_windows=2)
    experts = list(map(Fixed, some_models(one, 5)))
    few, more = choosing(2), choosing(2, seed=8)
    both = [torch.cat(pair) for pair in zip(few, more, strict=True)]
    found = one.instantiate(experts, TARGETS, both)
    assert torch.equal(found, one.instantiate(experts, TARGETS, few))
    assert not torch.equal(found, one.instantiate(experts, TARGETS, more))
    for given, said in ((None, "windows of 0 targets, and 3"), (few[:1], "windows of 1 targets, and 3")):
        with pytest.raises(ValueError, match=said):
            one.instantiate(experts, TARGETS, given)
    with pytest.raises(ValueError, match="choosing_windows is 0"):
        make("domain-experts", choosing_windows=0)


def test_domain_experts_cost_a_run_and_a_measurement_each():
    one, twin = make("domain-experts", group_K=GROUPS, choosing_windows=10), make("generic").cost()
    cost = one.cost()
    assert cost.pretrained_size == 2 * twin.pretrained_size
    assert cost.pretraining_tokens == 2 * twin.pretraining_tokens
    assert cost.pretraining_flops == 2 * twin.pretraining_flops
    assert cost.specialist_flops == 2 * 10 * L * twin.token_flops


def test_branches_share_the_budget_with_the_generic_run_they_begin_from():
    one = make("branched-experts", steps=103, generic_share=0.7, group_K=GROUPS)
    generic, *branches = one.runs()
    assert [run.training.steps for run in one.runs()] == [73, 15, 15]
    assert [run.training.warmup_steps for run in one.runs()] == [5, 5, 5]
    rate = one.training.learning_rate
    assert [run.training.learning_rate for run in one.runs()] == [rate, 0.3 * rate, 0.3 * rate]
    assert generic.begins_from is None and torch.equal(generic.domain_weights_K, GENERIC_K)
    assert {run.begins_from for run in branches} == {generic.name}
    cost, twin = one.cost(), make("generic", steps=103).cost()
    assert cost.pretraining_tokens == twin.pretraining_tokens
    assert cost.pretraining_flops == pytest.approx(twin.pretraining_flops)
    assert cost.pretrained_size == 3 * twin.pretrained_size


def test_a_branch_of_no_steps_is_the_generic_model():
    one = make("branched-experts", steps=40, group_K=GROUPS)
    generic, *branches = one.runs()
    learner = one.begin(generic)
    learner.train_step(*draw(generic, 0))
    model_P = learner.instantiate(GENERIC_K[None])
    begun = [one.begin(run, learner) for run in branches]
    for run, branch in zip(branches, begun, strict=True):
        assert torch.equal(branch.instantiate(GENERIC_K[None]), model_P)
        branch.train_step(*draw(run, 0))
        assert not torch.equal(branch.instantiate(GENERIC_K[None]), model_P)
    assert torch.equal(learner.instantiate(GENERIC_K[None]), model_P)  # its own parameters stay
    with pytest.raises(ValueError, match="group-000 begins from generic"):
        one.begin(branches[0])
    with pytest.raises(ValueError, match="generic begins from None"):
        one.begin(generic, learner)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 6}, "of 6 steps, 4 groups have 0 each"),
        ({"steps": 40, "generic_share": 0.999}, "4 groups have 0 each and the generic run 40"),
        ({"generic_share": 1.0}, "generic_share is 1.0; it must be above 0 and below 1"),
        ({"group_K": torch.tensor([0, 0, 2, 2])}, "group 1 of 3 has no text"),
        ({"group_K": torch.tensor([0, 0, 1])}, "for each of the 4 domains"),
        ({"group_K": torch.tensor([0, 0, 1, -1])}, "a whole number from 0 on"),
    ],
)
def test_what_cannot_be_branched_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        make("branched-experts", **({"steps": 40} | options)).runs()


def test_groups_are_the_trees_coarse_clusters_with_text():
    assert coarse_groups(torch.full((6,), 1 / 6), 3).tolist() == [0, 0, 1, 1, 2, 2]
    empty = torch.tensor([0, 0, 0.5, 0, 0, 0, 0, 0.5])
    assert coarse_groups(empty, 4).tolist() == [0, 0, 0, 0, 0, 0, 1, 1]
    assert make("domain-experts", generic_K=torch.tensor([0.5, 0, 0.5, 0])).num_groups == 2
    with pytest.raises(ValueError, match="6 domains are not shared evenly by 4 coarse clusters"):
        coarse_groups(torch.full((6,), 1 / 6), 4)
