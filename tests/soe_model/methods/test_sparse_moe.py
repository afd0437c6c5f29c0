"""A sparse mixture of experts as a method: dense where it must be, causal, balanced, and as costly as its products."""

import math
from dataclasses import replace

import pytest
import torch

from soe_model.methods.sparse_moe import balanced_losses
from soe_model.model.backbone import build_backbone, token_losses
from soe_model.planning.model_size import model_size
from tests.soe_model.methods.circles import (
    GENERIC_K,
    STEPS,
    B,
    K,
    L,
    N,
    assert_causal,
    learned,
    make,
    windows,
)
from tests.soe_model.methods.test_methods import counted

TOKENS = windows(GENERIC_K, 12, torch.Generator().manual_seed(0))


def sharp(one):
    """An untrained model whose experts and routers have a size that shows."""
    module = learned(one, 0)[0].module.requires_grad_(False).eval()
    torch.manual_seed(5)
    for name, parameter in module.named_parameters():
        if ".experts." in name or ".gate." in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return module


def dense(one, module, number=0):
    """Mistral with the same attention and, as its MLP, this expert of each layer."""
    width = one.mixtral["intermediate_size"]
    left_out = ("num_local_experts", "num_experts_per_tok", "experts_implementation")
    given = {name: value for name, value in one.mixtral.items() if name not in left_out}
    same = {name: getattr(module.config, name) for name in ("rms_norm_eps", "rope_parameters")}
    config = given | same | {"model_type": "mistral", "sliding_window": None}
    found = build_backbone(config, seed=1).module.eval()
    tensors = {}
    for name, tensor in module.state_dict().items():
        if name.endswith("gate_up_proj"):
            name = name.removesuffix("experts.gate_up_proj")
            tensors |= {
                f"{name}gate_proj.weight": tensor[number, :width],
                f"{name}up_proj.weight": tensor[number, width:],
            }
        elif name.endswith("experts.down_proj"):
            tensors[name.replace("experts.down_proj", "down_proj.weight")] = tensor[number]
        elif ".mlp.gate." not in name:
            tensors[name] = tensor
    found.load_state_dict(tensors)
    return found


def with_experts(one, number, top):
    return replace(one, soup=replace(one.soup, num_experts=number), top=top)


@torch.no_grad()
@pytest.mark.parametrize(("number", "top"), [(1, 1), (3, 1), (3, 2), (3, 3)])
def test_one_expert_or_equal_ones_are_the_dense_model(number, top):
    one = with_experts(make("sparse-moe"), number, top)
    module = sharp(one)
    for name, parameter in module.named_parameters():
        if ".experts." in name:
            parameter.copy_(parameter[:1].expand_as(parameter).clone())
    expected = dense(one, module)(input_ids=TOKENS).logits
    torch.testing.assert_close(module(input_ids=TOKENS).logits, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_unequal_experts_are_not():
    """Or the test above could not fail."""
    one = make("sparse-moe")
    module = sharp(one)
    assert (module(input_ids=TOKENS).logits - dense(one, module)(input_ids=TOKENS).logits).abs().max() > 0.05


@torch.no_grad()
@pytest.mark.parametrize("chosen", range(N))
@pytest.mark.parametrize("top", [1, 2])
def test_an_expert_with_all_weight_is_the_model(top, chosen):
    """Its router has no bias, so all embeddings have one number alike, which attention leaves and the router reads."""
    one = with_experts(make("sparse-moe"), N, top)
    module = sharp(one)
    module.get_input_embeddings().weight[:, 0] = 1.0
    [layer] = module.model.layers
    layer.self_attn.o_proj.weight[0] = 0.0
    layer.mlp.gate.weight.zero_()
    layer.mlp.gate.weight[chosen, 0] = 1e3
    found = module(input_ids=TOKENS).logits
    torch.testing.assert_close(
        found, dense(one, module, chosen)(input_ids=TOKENS).logits, rtol=1e-4, atol=1e-5
    )
    other = dense(one, module, (chosen + 1) % N)(input_ids=TOKENS).logits
    assert (found - other).abs().max() > 0.05


@torch.no_grad()
@pytest.mark.parametrize("top", [1, 2])
def test_the_order_of_experts_does_not_matter(top):
    """With their rows of the router; the balancing loss does not know it either."""
    one, order = with_experts(make("sparse-moe"), N, top), torch.tensor([2, 1, 0])
    module = sharp(one)
    expected, losses = module(input_ids=TOKENS).logits, balanced_losses(module, TOKENS, balance=0.5)
    for kind in (".experts.", ".gate."):
        for name, parameter in module.named_parameters():
            if kind in name:
                parameter.copy_(parameter[order])
        if kind == ".experts.":
            assert (module(input_ids=TOKENS).logits - expected).abs().max() > 0.05
    torch.testing.assert_close(module(input_ids=TOKENS).logits, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(balanced_losses(module, TOKENS, balance=0.5), losses, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_logits_do_not_depend_on_later_tokens():
    assert_causal(sharp(make("sparse-moe")), TOKENS[:, :L], 0.01)


@torch.no_grad()
def test_the_balancing_loss_is_top_where_routers_do_not_choose():
    """N Σ f p over the experts, with the shares f of the tokens, which sum to top, and the probabilities p all 1/N."""
    one = make("sparse-moe")
    module = sharp(one)

    def balancing():
        return (
            balanced_losses(module, TOKENS, balance=0.5) - token_losses(module, TOKENS)
        ).mean().item() / 0.5

    assert abs(balancing() - one.top) > 0.01
    for name, parameter in module.named_parameters():
        if ".gate." in name:
            parameter.zero_()
    assert balancing() == pytest.approx(one.top, abs=1e-4)


def test_the_balancing_loss_falls_along_its_gradient_of_the_routers():
    module = sharp(make("sparse-moe")).requires_grad_()
    gates = [parameter for name, parameter in module.named_parameters() if ".gate." in name]
    before = balanced_losses(module, TOKENS, balance=1.0).mean() - token_losses(module, TOKENS).mean()
    before.backward()
    with torch.no_grad():
        for gate in gates:
            assert gate.grad.abs().max() > 0
            gate -= 0.05 * gate.grad
        after = balanced_losses(module, TOKENS, balance=1.0).mean() - token_losses(module, TOKENS).mean()
    assert after < before


def test_it_learns():
    learner, results = learned(make("sparse-moe"), 30)
    assert all(math.isfinite(result.loss) for result in results) and results[0].router_gradient_norm > 0
    one = make("sparse-moe")
    models = one.instantiate([learner], torch.eye(K))
    assert len(models) == K and one.loss(models[0], TOKENS).mean() < results[0].loss - 0.3


def test_it_costs_what_its_tensors_and_products_count_to():
    one = make("sparse-moe")
    [run], cost, learner = one.runs(), one.cost(), learned(one, 0)[0]
    assert torch.equal(run.domain_weights_K, GENERIC_K) and cost.pretraining_tokens == STEPS * B * L
    stored = sum(parameter.numel() for parameter in learner.module.parameters())
    assert cost.specialist_size == cost.pretrained_size == stored
    not_taken = sum(
        parameter[one.top :].numel()
        for name, parameter in learner.module.named_parameters()
        if ".experts." in name
    )
    assert cost.active_size == stored - not_taken
    with counted() as of_window, torch.no_grad():
        learner.module.eval()(input_ids=TOKENS[:1, :L])
    assert cost.token_flops == of_window.get_total_flops() / L
    assert cost.pretraining_flops == STEPS * (3 * cost.token_flops * B * L + 14 * stored)


def test_a_token_is_multiplied_with_as_many_parameters_as_in_the_plain_model():
    one = make("sparse-moe")
    wider = {**one.mixtral, "intermediate_size": one.mixtral["intermediate_size"] + 1}
    more = 3 * one.size.embedding_size * one.top
    assert 0 <= one.size.matmul_params - one.active.matmul_params < more
    assert model_size(wider).num_params == one.cost().specialist_size + more * N // one.top
    assert one.mixtral["vocab_size"] == 8 and one.mixtral["tie_word_embeddings"]


def test_what_it_cannot_do_is_refused():
    one = make("sparse-moe")
    with pytest.raises(ValueError, match="num_experts is 1, and a token takes 2"):
        with_experts(one, 1, 2)
    with pytest.raises(ValueError, match="leave the backbone's 3,200 active parameters no room for 2"):
        with_experts(one, 400, 2).mixtral  # noqa: B018
    with pytest.raises(ValueError, match="top is 0; it must be at least 1"):
        make("sparse-moe", top=0)
