"""The Pareto manifold: its steps are those of Algorithm 2 without shared part and with α = h."""

import pytest
import torch

from soe_model.training.checkpoint import load_checkpoint, save_checkpoint
from tests.soe_model.methods.circles import GENERIC_K, STEPS, B, K, L, draw, make
from tests.soe_model.oracle import reference_of, take_the_same_steps

GROUPS = torch.tensor([0, 0, 1, 2])
TARGETS = torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0, 1.0], [0.1, 0.2, 0.3, 0.4]])
MASSES = torch.tensor([[1.0, 0, 0], [0, 0, 1.0], [0.3, 0.3, 0.4]])


def begun(**options):
    one = make("pareto", epsilon=1e-4, **options)
    [run] = one.runs()
    return one, run, one.begin(run)


def members(learner):
    """The parameters of each member, [G, P]."""
    size = learner.backbone.num_params
    return learner.bank.shared_p[:size] + learner.bank.experts.weights_Np[:, :size]


def test_its_steps_are_those_of_the_members_alone():
    """In the reference S is 0 and is not trained, and the members are the experts: it has no shared part at all."""
    _, run, learner = begun(group_K=GROUPS)
    start = learner.bank.shared_p.clone()
    reference = reference_of(learner, E=members(learner).clone())
    reference.S.data.zero_()
    reference.S.requires_grad_(False)
    take_the_same_steps(learner, reference, [draw(run, number) for number in range(4)])
    torch.testing.assert_close(members(learner), reference.E.detach().float(), rtol=1e-5, atol=5e-6)
    assert torch.equal(learner.bank.shared_p, start)
    assert (members(learner) - start[: learner.backbone.num_params]).abs().max() > 1e-3


def test_a_model_is_the_members_average_by_the_targets_weights():
    one, run, learner = begun(group_K=GROUPS)
    for number in range(2):
        learner.train_step(*draw(run, number))
    expected = MASSES @ members(learner)
    torch.testing.assert_close(one.instantiate([learner], TARGETS), expected, rtol=1e-5, atol=1e-6)


def test_without_noise_all_mixtures_begin_at_one_model_and_one_member_is_ordinary_training():
    """One member on all domains, at the shared parameters' rate, is the twin on the same batches."""
    one = make("pareto", epsilon=1e-4, expert_rate=1e-2, group_K=torch.zeros(K, dtype=torch.int64))
    [run] = one.runs()
    learner = one.begin(run)
    learner.bank.experts.weights_Np.zero_()
    reference = reference_of(learner, E=torch.zeros(0, learner.backbone.num_params))
    reference.phi = torch.nn.Linear(K, 0).double()  # no expert, so an instance is S
    assert torch.equal(one.instantiate([learner], TARGETS), reference.S.detach().float().expand(3, -1))
    take_the_same_steps(learner, reference, [draw(run, number) for number in range(3)])
    torch.testing.assert_close(members(learner)[0], reference.S.detach().float(), rtol=1e-5, atol=5e-6)


def test_numbers_of_groups_are_names_only():
    order = torch.tensor([2, 0, 1])
    one, run, learner = begun(group_K=GROUPS)
    other, _, renamed = begun(group_K=order[GROUPS])
    renamed.bank.experts.weights_Np[order] = learner.bank.experts.weights_Np
    for number in range(2):
        learner.train_step(*draw(run, number))
        renamed.train_step(*draw(run, number))
    torch.testing.assert_close(
        other.instantiate([renamed], TARGETS), one.instantiate([learner], TARGETS), rtol=1e-5, atol=1e-6
    )


def test_a_checkpoint_resumes_it(tmp_path):
    one, run, learner = begun()
    learner.train_step(*draw(run, 0))
    save_checkpoint(tmp_path, learner, plan_digest="p", notes={})
    resumed = one.begin(run)
    load_checkpoint(tmp_path, resumed, plan_digest="p")
    for again in (learner, resumed):
        again.train_step(*draw(run, 1))
    assert torch.equal(one.instantiate([resumed], TARGETS), one.instantiate([learner], TARGETS))
    with pytest.raises(ValueError):
        load_checkpoint(tmp_path, make("soup").begin(make("soup").runs()[0]), plan_digest="p")


def test_members_are_whole_models_and_a_specialist_is_one_sum_of_them():
    one = make("pareto", group_K=GROUPS, rank=2)
    cost, twin = one.cost(), make("generic").cost()
    assert one.runs()[0].soup.expert_rank is None
    assert cost.pretrained_size == 3 * twin.pretrained_size
    assert cost.specialist_flops == 2 * cost.pretrained_size
    assert cost.pretraining_tokens == STEPS * B * L
    assert make("pareto").num_groups == len(GENERIC_K)


def test_flops_are_those_of_the_trainers_products():
    """To which Adam's 14 operations for each parameter come; padding, masses and the norm are left out."""
    # Not at the top: it imports triton, before test_kernels.py can ask for its interpreter.
    from torch.utils.flop_counter import FlopCounterMode

    one, run, learner = begun(group_K=GROUPS)
    cost, groups, mixtures = one.cost(), one.num_groups, run.training.mixtures_per_step
    with FlopCounterMode(display=False) as counted:
        learner.train_step(*draw(run, 0))
    width, size = learner.sharding.width, cost.specialist_size
    padding = 3 * 2 * mixtures * groups * (width - size)
    masses = 2 * mixtures * K * groups
    norm = 2 * mixtures**2 * (width + groups)
    products = counted.get_total_flops() - padding - masses - norm
    assert cost.pretraining_flops == STEPS * (products + 14 * size * (1 + groups))
