"""SMEAR as a method: routed and frozen, it learns, resumes, and costs what its tensors and products count to."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save

from soe_model.model.merged_experts import FrozenExpert, banks_of
from soe_model.planning.state_size import soup_params
from soe_model.specialists.coefficient_learning import Learning
from tests.soe_model.methods.circles import STEPS, B, K, L, assert_causal, draw, learned, make, windows
from tests.soe_model.methods.test_methods import counted


def of_domains(number=20):
    generator = torch.Generator().manual_seed(999)
    return [windows(weights_K, number, generator) for weights_K in torch.eye(K)]


def test_it_learns_and_the_frozen_models_tell_domains_apart():
    one, still = make("smear", segments=L), make("smear-frozen", segments=L)
    learner, results = learned(one, STEPS)
    assert results[-1].loss < results[0].loss - 0.5
    assert results[-1].router_gradient_norm > 0 and 0 < results[-1].router_entropy < 1.0987
    texts = of_domains()
    routed = one.instantiate([learner], torch.eye(K), texts)
    frozen = still.instantiate([learner], torch.eye(K), texts)
    assert len(routed) == len(frozen) == K
    start = one.instantiate([one.begin(one.runs()[0])], torch.eye(K))[0]
    for model, alone, text in zip(routed, frozen, texts, strict=True):
        assert one.loss(model, text).mean() < one.loss(start, text).mean() - 0.2
        assert still.loss(alone, text).mean() < one.loss(start, text).mean() - 0.2
    assert (still.loss(frozen[0], texts[0]) != still.loss(frozen[1], texts[0])).any()


def sharp(one):
    """An untrained model whose experts and routers have a size that shows."""
    [run] = one.runs()
    module = one.begin(run).module.requires_grad_(False).eval()
    torch.manual_seed(5)
    for bank in banks_of(module):
        torch.nn.init.normal_(bank.router.column_norm.weight, std=2.0)
        torch.nn.init.normal_(bank.up_NCD, std=0.5)
        torch.nn.init.normal_(bank.down_NDC, std=0.5)
    return module


def test_logits_do_not_depend_on_later_tokens():
    assert_causal(sharp(make("smear", segments=L)), of_domains()[0][:, :L], 0.1)


def test_logits_of_a_frozen_model_do_not_either():
    one, texts = make("smear-frozen", segments=L), of_domains()
    models = one.instantiate([Kept(sharp(one))], torch.eye(K), texts)
    for model, text in zip(models, texts, strict=True):
        assert_causal(model, text[:, :L], 0.1)


def test_frozen_shares_are_the_mean_over_windows_and_segments():
    one = make("smear-frozen", segments=L, windows_read=7)
    module, [text, *_] = sharp(one), of_domains()
    [frozen] = one.instantiate([Kept(module)], torch.eye(K)[:1], [text])
    assert not banks_of(frozen) and banks_of(module)
    module(input_ids=text[:7, :-1])
    for bank, alone in zip(
        banks_of(module), [m for m in frozen.modules() if isinstance(m, FrozenExpert)], strict=True
    ):
        shares_N = bank.shares_BSN.flatten(0, 1).mean(0)
        assert shares_N.std() > 0.01
        expected = torch.einsum("n,ndc->dc", shares_N, bank.down_NDC)
        torch.testing.assert_close(alone.down_DC, expected, rtol=1e-4, atol=1e-6)


def test_a_frozen_model_is_fine_tuned_with_its_adapters():
    still = make("smear-frozen", segments=L)
    texts = of_domains()
    [frozen] = still.instantiate([Kept(sharp(still))], torch.eye(K)[:1], texts[:1])
    before = {name: tensor.clone() for name, tensor in frozen.state_dict().items()}
    tuned, _ = still.fine_tune(frozen, texts[0], texts[0][:4], Learning(steps=20, learning_rate=1e-2))
    assert still.loss(tuned, texts[0]).mean() < still.loss(frozen, texts[0]).mean() - 0.1
    for name, tensor in before.items():
        assert torch.equal(frozen.state_dict()[name], tensor)
        assert not torch.equal(tuned.state_dict()[name], tensor), name
    assert make("smear").routed and not still.routed


class Kept:
    """What a caller kept of a run."""

    def __init__(self, module):
        self.module = module

    def instantiate(self, domain_weights_WK):
        return [self.module] * len(domain_weights_WK)


def test_a_resumed_run_is_the_same_run():
    """The experts that are dropped in a step included, whatever was drawn in between."""
    one = make("smear", dropout=0.5)
    whole, results = learned(one, 4)
    first, _ = learned(one, 2)
    [run] = one.runs()
    second = one.begin(run)
    second.load_state_dict(load(save(first.state_dict())))
    torch.rand(7)
    again = [second.train_step(*draw(run, number)) for number in (2, 3)]
    assert [result.loss for result in again] == [result.loss for result in results[2:]]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], tensor), name
    short = second.state_dict()
    short.pop("step")
    with pytest.raises(ValueError, match="tensor step is missing"):
        second.load_state_dict(short)
    with pytest.raises(
        ValueError, match=r"down_NDC has shape \[3, 16, 104\] in the saved state and \[3, 16, 5\] here"
    ):
        make("smear", width=5).begin(run).load_state_dict(second.state_dict())


def test_micro_batches_change_nothing_but_rounding():
    losses = []
    for size in (None, 3):
        one = make("smear", dropout=0.0)
        _, results = learned(replace(one, training=replace(one.training, micro_batch_size=size)), 3)
        losses.append([result.loss for result in results])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.mark.parametrize("rank", [None, 2])
def test_experts_are_as_wide_as_the_soups_size_allows(rank):
    one = make("smear", rank=rank)
    [run] = one.runs()
    learner = one.begin(run)
    count = sum(parameter.numel() for parameter in learner.module.parameters())
    cost = one.cost()
    assert cost.specialist_size == cost.pretrained_size == count
    most = soup_params(one.setup(run))
    wider = make("smear", rank=rank, width=one.expert_width + 1)
    assert count <= most < wider.cost().pretrained_size
    frozen = make("smear-frozen", rank=rank)
    [model] = frozen.instantiate([learner], torch.eye(K)[:1], of_domains()[:1])
    served = sum(parameter.numel() for parameter in [*model.parameters(), *model.buffers()])
    assert frozen.cost().specialist_size == served


def test_flops_are_those_of_the_products():
    one = make("smear", segments=2)
    learner, _ = learned(one, 0)
    [run], still = one.runs(), make("smear-frozen", segments=2)
    with counted() as of_step:
        learner.train_step(*draw(run, 0))
    cost, num_params = one.cost(), sum(p.numel() for p in learner.module.parameters())
    assert cost.pretraining_flops == pytest.approx(STEPS * (of_step.get_total_flops() + 14 * num_params))
    assert cost.pretraining_tokens == STEPS * B * L
    text = of_domains()[:1]
    with counted() as of_window, torch.no_grad():
        learner.module.eval()(input_ids=text[0][:1, :-1])
    assert cost.token_flops == pytest.approx(of_window.get_total_flops() / L)
    with counted() as of_freezing:
        [model] = still.instantiate([learner], torch.eye(K)[:1], text)
    read = len(text[0]) / still.windows_read
    merging = 2 * 3 * (2 * 16 * one.expert_width + one.expert_width + 16)
    assert of_freezing.get_total_flops() == pytest.approx(
        merging + read * (still.cost().specialist_flops - merging)
    )
    with counted() as of_window, torch.no_grad():
        model(input_ids=text[0][:1, :-1])
    assert still.cost().token_flops == pytest.approx(of_window.get_total_flops() / L)


def test_what_it_cannot_do_is_refused():
    still = make("smear-frozen")
    learner, _ = learned(still, 0)
    for texts in (None, of_domains()[:1], [text[:0] for text in of_domains()]):
        with pytest.raises(ValueError, match="give windows for each"):
            still.instantiate([learner], torch.eye(K), texts)
    with pytest.raises(ValueError, match="width is 0; it must be at least 1"):
        make("smear", width=0)
    with pytest.raises(ValueError, match="num_experts is 0"):
        replace(still, soup=replace(still.soup, num_experts=0))
    with pytest.raises(ValueError, match="sum to 2"):
        still.instantiate([learner], torch.full((1, K), 0.5), of_domains()[:1])
