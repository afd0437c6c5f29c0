"""PHATGOOSE and Arrow as methods, against PEFT's own LoRAs: what is trained, what is routed, and what it costs."""

import hashlib

import pytest
import torch

from soe_model.methods import lora_pool
from soe_model.methods.arrow import arrow_model
from soe_model.methods.groups import coarse_groups
from soe_model.methods.lora_pool import linears, loras_of
from soe_model.methods.phatgoose import check_gates, gate_spread, gated, routed
from tests.soe_model.methods.circles import GENERIC_K, STEPS, B, K, L, draw, make, trained, windows
from tests.soe_model.methods.test_methods import counted

E, R = 3, 2
GROUP_K = torch.tensor([0, 0, 1, 2])


def pool(name="phatgoose", **options):
    return make(name, **{"lora_rank": R, "group_K": GROUP_K, "lora_learning_rate": 0.03} | options)


@pytest.fixture(scope="module")
def learners():
    """Of PHATGOOSE, by the names of its runs."""
    one = pool()
    return dict(zip([run.name for run in one.runs()], trained(one), strict=True))


def modules(learners, kind):
    return [learner.module for name, learner in learners.items() if name.startswith(kind)]


def fresh_base(learners):
    one = pool()
    return one.base(one.plain_model(learners["generic"]))


TOKENS = windows(GENERIC_K, 6, torch.Generator().manual_seed(3))[:, :L]


@torch.no_grad()
def logits(model, tokens=TOKENS):
    return model.eval()(input_ids=tokens).logits


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def merged(learners, weights):
    """The generic model with some of each LoRA in its matrices, as PEFT computes their change."""
    base = fresh_base(learners)
    for name, linear in linears(base):
        for weight, module in zip(weights, modules(learners, "lora"), strict=True):
            linear.weight.data += weight * loras_of(module)[name].get_delta_weight("default")
    return base


def test_peft_warns_nobody(learners, recwarn):
    lora_pool.lora_model(fresh_base(learners), rank=R, seed=0)
    assert not recwarn.list


def test_a_lora_learns_its_group_and_leaves_the_generic_model_as_it_is(learners):
    generic = pool().plain_model(learners["generic"])
    for number, (module, run) in enumerate(zip(modules(learners, "lora"), pool().runs()[1:], strict=False)):
        base = dict(module.get_base_model().named_parameters())
        for slot in learners["generic"].backbone.layout:
            stem, _, last = slot.name.rpartition(".")
            tensor = base.get(slot.name, base.get(f"{stem}.base_layer.{last}"))
            assert torch.equal(tensor.flatten(), generic[slot.offset : slot.offset + slot.size]), slot.name
        text = windows(run.domain_weights_K, 40, torch.Generator().manual_seed(number))
        assert pool().loss(module, text).mean() < pool().loss(fresh_base(learners), text).mean() - 0.02
    downs = [
        loras_of(module)["transformer.h.0.attn.c_attn"].lora_A["default"].weight
        for module in modules(learners, "lora")
    ]
    assert (downs[0] - downs[1]).abs().max() > 0.1  # they began apart


def test_a_new_gate_halves_the_lora_and_its_training_changes_gates_only(learners):
    one = pool()
    [run, *_] = [run for run in one.runs() if run.name == "gate-001"]
    learner = one.begin(run, learners["lora-001"])
    assert_same(logits(learner.module), logits_with_scale(learners["lora-001"].module, 0.5))
    before, of_lora = hashes(learner.module), hashes(learners["lora-001"].module)
    for number in range(3):
        learner.train_step(*draw(run, number))
    after = hashes(learner.module)
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {name for name in after if name.endswith("gate_I")} and len(changed) == 4
    assert hashes(learners["lora-001"].module) == of_lora
    again = one.begin(run, learners["lora-001"])
    again.load_state_dict(learner.state_dict())
    assert hashes(again.module) == after


def hashes(module):
    return {
        name: hashlib.sha256(t.detach().numpy().tobytes()).hexdigest()
        for name, t in module.state_dict().items()
    }


def logits_with_scale(module, factor):
    layers = loras_of(module).values()
    for layer in layers:
        layer.scaling["default"] *= factor
    found = logits(module)
    for layer in layers:
        layer.scaling["default"] /= factor
    return found


def test_one_expert_is_that_lora(learners):
    for lora, gate in zip(modules(learners, "lora"), modules(learners, "gate"), strict=True):
        alone = logits(lora)
        assert (alone - logits(fresh_base(learners))).abs().max() > 0.05
        assert_same(logits(routed(fresh_base(learners), [gate])), alone)
        assert_same(logits(arrow_model(fresh_base(learners), [lora])), alone)


def test_all_experts_with_equal_gates_are_the_loras_concatenated(learners):
    """Which is what PEFT calls combining by "cat"; with weights of 1/E."""
    same = [gated(module)[0] for module in modules(learners, "lora")]
    expected = logits(merged(learners, [1 / E] * E))
    assert (expected - logits(merged(learners, [1, 0, 0]))).abs().max() > 0.05
    assert_same(logits(routed(fresh_base(learners), same, top=E)), expected)


def test_the_order_of_the_experts_does_not_matter(learners):
    gates, loras = modules(learners, "gate"), modules(learners, "lora")
    expected = logits(routed(fresh_base(learners), gates))
    assert_same(logits(routed(fresh_base(learners), gates[::-1])), expected)
    expected = logits(arrow_model(fresh_base(learners), loras))
    assert_same(logits(arrow_model(fresh_base(learners), loras[::-1])), expected)


@pytest.mark.parametrize("name", ["phatgoose", "arrow"])
def test_a_method_gives_one_model_for_all_targets_that_sees_nothing_ahead(name, learners):
    one = pool(name)
    trained = [learners[run.name] for run in one.runs()]
    models = one.instantiate(trained, torch.eye(K))
    assert len(models) == K and all(model is models[0] for model in models)
    before = logits(models[0])
    for k in range(1, L):
        others = TOKENS.clone()
        others[:, k:] = (others[:, k:] + 3) % 8
        assert_same(logits(models[0], others)[:, :k], before[:, :k])
    text = windows(GENERIC_K, 100, torch.Generator().manual_seed(4))
    untrained = one.base(one.plain_model(one.begin(one.runs()[0])))
    assert one.loss(models[0], text).mean() < one.loss(untrained, text).mean() - 0.3
    with pytest.raises(ValueError, match="sum to 2"):
        one.instantiate(trained, torch.full((1, K), 0.5))


def test_arrows_prototype_is_what_the_lora_stretches_most(learners):
    model = arrow_model(fresh_base(learners), modules(learners, "lora"))
    logits(model)  # the prototypes are made then
    name = "transformer.h.0.mlp.c_fc"
    found = loras_of(model)[name].lora_arrow["arrow_router"].prototypes
    for prototype, module in zip(found, modules(learners, "lora"), strict=True):
        layer = loras_of(module)[name]
        _, sizes, right = torch.linalg.svd(layer.lora_B["default"].weight @ layer.lora_A["default"].weight)
        assert sizes[1] < 0.8 * sizes[0]  # else its few iterations would not find it
        assert (prototype @ right[0]).abs().item() == pytest.approx(1, abs=1e-2)


def test_gates_too_small_for_layer_norm_are_refused(learners):
    gates = modules(learners, "gate")
    check_gates(gates)
    spread = gate_spread(gates)
    assert len(spread) == 4
    assert routed(fresh_base(learners), gates).gate_spread == pytest.approx(
        min(e.min() for e in spread.values()).item()
    )
    weak, _ = gated(modules(learners, "lora")[0])
    with pytest.raises(
        ValueError, match="gate of expert 1 at transformer.h.0.* deviation of 0: .* leaves 0%"
    ):
        check_gates([gates[0], weak])


@pytest.mark.needs("peft", extra="exports")
def test_steps_and_mixtures_of_the_runs():
    one = pool(group_K=coarse_groups(GENERIC_K, 2))
    runs = {run.name: run for run in one.runs()}
    assert list(runs) == ["generic", "lora-000", "lora-001", "gate-000", "gate-001"]
    assert [run.training.steps for run in runs.values()] == [30, 12, 12, 3, 3]
    assert [run.begins_from for run in runs.values()] == [None, "generic", "generic", "lora-000", "lora-001"]
    for kind in ("lora", "gate"):
        assert runs[f"{kind}-000"].domain_weights_K.tolist() == [0.5, 0.5, 0, 0]
        assert runs[f"{kind}-001"].domain_weights_K.tolist() == [0, 0, 0.5, 0.5]
    assert one.cost().pretraining_tokens == STEPS * B * L
    assert [run.name for run in pool("arrow").runs()] == ["generic", "lora-000", "lora-001", "lora-002"]
    with pytest.raises(
        ValueError, match="of 60 steps, 3 groups have 10 each .* the gates of a group take 10"
    ):
        pool(gate_steps=10)
    with pytest.raises(ValueError, match="lora_rank is 0"):
        pool(lora_rank=0)


def test_without_peft_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(lora_pool, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'soup-of-experts\[exports\]'"):
        pool()


@pytest.mark.parametrize("name", ["phatgoose", "arrow"])
def test_costs_are_what_tensors_and_products_count_to(name, learners):
    one = pool(name)
    runs = one.runs()
    model = one.instantiate([learners[run.name] for run in runs], torch.eye(K)[:1])[0]
    logits(model)  # PEFT makes its prototypes then
    tensors = [*model.parameters(), *model.buffers()]
    served = sum(t.numel() for t in tensors)
    if name == "arrow":  # PEFT's router has a LoRA of its own, which is never used
        served -= sum(p.numel() for name, p in model.named_parameters() if "arrow_router" in name)
    cost = one.cost()
    assert cost.specialist_size == served
    assert cost.pretrained_size == served - (E * one.gate_size if name == "arrow" else 0)
    with counted() as of_window:
        logits(model, TOKENS[:1])
    assert cost.token_flops == pytest.approx(of_window.get_total_flops() / L)


def test_flops_of_each_kind_of_run(learners):
    """But for what the first layer saves, whose input needs no gradient. Gates are vectors, which are not counted."""
    one = pool()
    of_base, of_lora = 2 * B * L * 16 * 48, 2 * B * L * 16 * R
    for name, uncounted in (
        ("lora-000", of_base + of_lora),
        ("gate-000", of_base + 6 * B * L * one.gate_size),
    ):
        [run] = [run for run in one.runs() if run.name == name]
        learner = one.begin(run, learners[run.begins_from])
        with counted() as of_step:
            learner.train_step(*draw(run, 0))
        trained = sum(p.numel() for p in learner.module.parameters() if p.requires_grad)
        expected = of_step.get_total_flops() + uncounted + 14 * trained
        assert one.run_flops(run) / run.training.steps == pytest.approx(expected), name


@pytest.mark.needs("peft", extra="exports")
def test_linear_shapes_are_those_of_the_backbone():
    assert pool().linear_shapes == [(16, 48), (16, 16), (16, 64), (64, 16)]
