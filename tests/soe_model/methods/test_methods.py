"""All methods behind one interface; the soup and its twin cost what their tensors and products count to."""

import pytest
import torch

from soe_model.methods import METHODS, method
from soe_model.model.backbone import token_losses
from soe_model.specialists.coefficient_learning import Learning
from tests.soe_model.methods.circles import GENERIC_K, ROUTED, STEPS, B, K, L, N, draw, make, trained, windows
from tests.soe_model.oracle import assert_same_parameters, reference_of, take_the_same_steps


def mean_losses(one, learners):
    """Of the model of each domain alone, on its own windows; other windows choose, where a method does."""
    generator = torch.Generator().manual_seed(999)
    choosing = [windows(weights_K, 20, generator) for weights_K in torch.eye(K)]
    models = one.instantiate(learners, torch.eye(K), choosing)
    assert models.shape == (K, one.size.num_params) and models.dtype == torch.float32
    return torch.stack(
        [
            one.loss(model, windows(weights_K, 20, generator)).mean()
            for model, weights_K in zip(models, torch.eye(K), strict=True)
        ]
    )


@pytest.fixture(scope="module")
def of_generic():
    """Losses of the twin."""
    twin = make("generic")
    start = mean_losses(twin, [twin.begin(run) for run in twin.runs()])
    found = mean_losses(twin, trained(twin))
    assert found.mean() < start.mean() - 0.4
    return found


@pytest.mark.parametrize("name", sorted(METHODS.keys() - ROUTED - {"generic"}))
def test_all_learn_and_only_the_twin_does_not_tell_domains_apart(name, of_generic):
    """After its first word a window may be of any domain, so one model for all cannot be below ln 4 there."""
    one = make(name, steps=STEPS // 4 if name in ("crisp", "domain-experts") else STEPS)  # of each of K runs
    assert (mean_losses(one, trained(one, torch.eye(K))) < of_generic - 0.1).all()


def test_the_twin_is_plain_training_of_the_shared_parameters_on_the_generic_mixture():
    twin = make("generic", epsilon=1e-4)
    [run] = twin.runs()
    assert run.soup.num_experts == 0 and torch.equal(run.domain_weights_K, GENERIC_K)
    learner = twin.begin(run)
    reference = reference_of(learner)
    take_the_same_steps(learner, reference, [draw(run, number) for number in range(3)])
    assert_same_parameters(learner, reference)
    models = twin.instantiate([learner], torch.eye(K))
    assert torch.equal(models, learner.bank.shared_p[: twin.size.num_params].expand(K, -1))


def test_a_twin_may_read_all_domains_alike():
    """As a soup does on the average. An empty domain has nothing to read."""
    shares_K = torch.tensor([0.5, 0.0] + [0.5 / (K - 2)] * (K - 2))
    [run] = make("generic", generic_K=shares_K, mixture="uniform").runs()
    assert run.domain_weights_K.tolist() == pytest.approx([1 / (K - 1), 0] + [1 / (K - 1)] * (K - 2))
    [run] = make("generic", generic_K=shares_K, mixture="size").runs()
    assert torch.equal(run.domain_weights_K, shares_K)
    with pytest.raises(ValueError, match="mixture is even; it must be one of size, uniform"):
        make("generic", mixture="even")


def test_targets_may_share_the_tokens_of_crisp():
    one = make("crisp", steps=9, shared_by=4)
    assert [run.training.steps for run in one.runs(torch.eye(K))] == [2] * K
    alone = make("crisp", steps=2).cost()
    assert one.cost().specialist_tokens == alone.specialist_tokens
    assert one.cost().specialist_flops == alone.specialist_flops
    with pytest.raises(ValueError, match="shared_by is 10: of 9 steps none has one"):
        make("crisp", steps=9, shared_by=10)


@pytest.mark.parametrize("rank", [None, 2])
def test_the_soups_models_are_those_of_equation_2(rank):
    one = make("soup", rank=rank)
    [run] = one.runs()
    assert run.domain_weights_K is None
    learner = one.begin(run)
    weights_WK = torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0, 1.0], GENERIC_K.tolist()])
    models = one.instantiate([learner], weights_WK)
    with torch.no_grad():
        alpha = learner.router.module(weights_WK)
    singles = learner.bank.instances(torch.eye(N)) - learner.bank.shared_p[: one.size.num_params]
    expected = learner.bank.shared_p[: one.size.num_params] + alpha @ singles
    torch.testing.assert_close(models, expected, rtol=1e-5, atol=1e-6)
    assert not models.requires_grad


def test_a_loss_is_that_of_each_window():
    one = make("soup")
    [learner] = [one.begin(run) for run in one.runs()]
    tokens = windows(GENERIC_K, 3, torch.Generator().manual_seed(0))
    found = one.loss(learner.backbone.params_P, tokens)
    with torch.no_grad():
        expected = token_losses(learner.backbone.module, tokens).double().mean(1)
    torch.testing.assert_close(found, expected)


def test_a_model_is_fine_tuned_without_the_others_changing():
    one = make("generic")
    text = windows(torch.eye(K)[0], 20, torch.Generator().manual_seed(0))
    model = 0.1 * torch.randn(one.size.num_params, generator=torch.Generator().manual_seed(0))
    before = model.clone()
    tuned, learned = one.fine_tune(model, text[:16], text[16:], Learning(steps=20, learning_rate=1e-2))
    assert torch.equal(model, before)
    assert one.loss(tuned, text).mean() < one.loss(model, text).mean() - 0.5
    assert min(learned.stopping_losses) == pytest.approx(one.loss(tuned, text[16:]).mean().item())


@pytest.mark.parametrize("name", METHODS)
def test_weights_that_are_no_distribution_are_refused(name):
    one = make(name)
    with pytest.raises(ValueError, match="sum to 2"):
        one.instantiate([], torch.full((1, K), 0.5))


@pytest.mark.parametrize(("name", "rank"), [("soup", None), ("soup", 2), ("generic", None)])
def test_sizes_are_what_the_tensors_count_to(name, rank):
    one = make(name, rank=rank)
    [learner] = [one.begin(run) for run in one.runs()]
    num_params = sum(p.numel() for p in learner.backbone.module.parameters())
    kept = num_params
    if name == "soup":
        kept += sum(t.numel() for j in range(N) for t in learner.bank.expert_tensors(j).values())
        kept += sum(p.numel() for p in learner.router.module.parameters())
    cost = one.cost()
    assert (cost.specialist_size, cost.pretrained_size) == (num_params, kept)
    assert cost.pretraining_tokens == STEPS * B * L


def counted():
    """Counts the FLOPs of products of matrices."""
    # Not at the top: it imports triton, before test_kernels.py can ask for its interpreter.
    from torch.utils.flop_counter import FlopCounterMode

    return FlopCounterMode(display=False)


def router_flops(run):
    """Of its training: the domain weights need no gradient."""
    soup = run.soup
    return 2 * run.training.mixtures_per_step * soup.router_hidden * (2 * K + 3 * soup.num_experts)


@pytest.mark.parametrize("name", ["soup", "generic"])
def test_flops_are_those_of_the_products_that_autograd_makes(name):
    """To which Adam's 14 operations for each parameter come. The router's training is left out, as in the paper."""
    one = make(name)
    [run] = one.runs()
    learner, cost = one.begin(run), one.cost()
    reference = reference_of(learner)
    tokens, _, weights_WK = draw(run, 0)
    with counted() as of_step:
        reference.step(weights_WK.double(), tokens.unflatten(0, (len(weights_WK), -1)))
    experts = run.soup.num_experts
    bank_params = cost.specialist_size * (1 + experts)
    expected = of_step.get_total_flops() - router_flops(run) + 14 * bank_params
    assert cost.pretraining_flops == STEPS * expected
    with counted() as of_instance, torch.no_grad():
        reference.instantiate(weights_WK[:1].double())
    assert cost.specialist_flops == (of_instance.get_total_flops() if experts else 0)
    with counted() as of_window, torch.no_grad():
        learner.backbone.module(input_ids=tokens[:1, :-1])
    assert cost.token_flops == of_window.get_total_flops() / L


def test_flops_of_low_rank_experts_are_those_of_the_trainers_products():
    one = make("soup", rank=2)
    [run] = one.runs()
    learner, cost = one.begin(run), one.cost()
    with counted() as of_step:
        learner.train_step(*draw(run, 0))
    gram = 2 * run.training.mixtures_per_step**2 * learner.sharding.width  # for the norm; not in the plan
    bank_params = cost.specialist_size + learner.bank.experts.factors_NQ.numel()
    expected = of_step.get_total_flops() - router_flops(run) - gram + 14 * bank_params
    assert cost.pretraining_flops == STEPS * expected


def test_an_unknown_method_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="no method 'swarm'; there are soup, generic, crisp"):
        method("swarm")
