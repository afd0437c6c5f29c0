"""Merges of branched experts: by their formulas, by PEFT, and by mergekit where it means the same."""

from types import SimpleNamespace

import pytest
import torch

import soe_model.methods.merging as merging
from tests.extras import needs
from tests.soe_model.methods.circles import Fixed, K, make, some_models, windows

NAMES = ["merged-linear", "merged-task-arithmetic", "merged-ties", "merged-dare"]
TARGETS = torch.tensor([[0.5, 0.5, 0, 0], [0.1, 0.2, 0.3, 0.4], [0, 0.7, 0, 0.3]])
PLAIN = {"scalings": (1.0,)}
"""Nothing to choose, but for the densities of TIES."""
DENSE = {"merged-ties": {"densities": (0.3,)}}


def models_of(one, *, seed=0):
    """The generic model and an expert for each group, random."""
    generic_1P, experts_GP = some_models(one, 1, seed=seed), some_models(one, one.num_groups, seed=seed + 1)
    return generic_1P[0], experts_GP


def merged(one, generic_P, experts_GP, weights_WK=TARGETS, **given):
    return one.instantiate([Fixed(generic_P), *map(Fixed, experts_GP)], weights_WK, **given)


def by_tensor(one, deltas_gP):
    """The layout's tensors, as PEFT and mergekit see them."""
    return [deltas_gP[:, slot.offset : slot.offset + slot.size] for slot in one._backbone.layout]


def trimmed(deltas_gp, density):
    """Of each expert the largest magnitudes; in float64."""
    kept = int(density * deltas_gp.shape[1])
    border = deltas_gp.abs().sort(1, descending=True).values[:, kept - 1 : kept] if kept else torch.inf
    return torch.where(deltas_gp.abs() >= border, deltas_gp, 0.0).double()


def test_the_linear_merge_is_the_average_of_the_experts_by_the_targets_weights():
    one = make("merged-linear", group_K=torch.tensor([0, 0, 1, 2]))
    generic_P, experts_GP = models_of(one)
    masses = torch.tensor([[1.0, 0, 0], [0.3, 0.3, 0.4], [0.7, 0, 0.3]])
    torch.testing.assert_close(merged(one, generic_P, experts_GP), masses @ experts_GP)


@pytest.mark.parametrize("name", NAMES)
def test_an_expert_with_all_weight_is_the_model_but_for_what_is_dropped(name):
    one = make(name, **PLAIN, **DENSE.get(name, {}))
    generic_P, experts_GP = models_of(one)
    found = merged(one, generic_P, experts_GP, torch.eye(K)) - generic_P
    deltas_GP = experts_GP - generic_P
    kept = found != 0 if name in ("merged-ties", "merged-dare") else torch.ones_like(found, dtype=torch.bool)
    larger = 2 if name == "merged-dare" else 1  # half of all is dropped
    torch.testing.assert_close(found, larger * kept * deltas_GP, rtol=1e-5, atol=1e-6)
    assert kept.float().mean() > 0.15


@pytest.mark.parametrize("name", ["merged-linear", "merged-task-arithmetic"])
def test_equal_experts_are_one_model(name):
    one = make(name, **PLAIN)
    generic_P, experts_GP = models_of(one)
    same = experts_GP[:1].expand(K, -1)
    torch.testing.assert_close(merged(one, generic_P, same), same[:3], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("density", [0.1, 0.5])
def test_ties_of_equal_experts_is_what_each_of_them_keeps(density):
    """By whatever weights: they agree in each sign."""
    one = make("merged-ties", densities=(density,), **PLAIN)
    generic_P, experts_GP = models_of(one)
    found = merged(one, generic_P, experts_GP[:1].expand(K, -1)) - generic_P
    kept_1P = torch.cat(
        [trimmed(p, density) for p in by_tensor(one, experts_GP[:1] - generic_P)], dim=1
    ).float()
    assert (kept_1P != 0).float().mean().item() == pytest.approx(density, abs=0.01)
    torch.testing.assert_close(found, kept_1P.expand(3, -1), rtol=1e-5, atol=1e-6)
    assert torch.equal(found != 0, kept_1P.expand(3, -1) != 0)


@pytest.mark.parametrize("name", NAMES)
def test_experts_that_changed_nothing_are_the_generic_model(name):
    one = make(name, **PLAIN, **DENSE.get(name, {}))
    generic_P, _ = models_of(one)
    assert torch.equal(merged(one, generic_P, generic_P.expand(K, -1)), generic_P.expand(3, -1))


@pytest.mark.parametrize("name", NAMES[:3])
def test_the_order_of_experts_does_not_matter(name):
    order = torch.tensor([2, 0, 3, 1])
    options = PLAIN | DENSE.get(name, {})
    one, other = make(name, **options), make(name, group_K=order.argsort(), **options)
    generic_P, experts_GP = models_of(one)
    torch.testing.assert_close(
        merged(other, generic_P, experts_GP[order]), merged(one, generic_P, experts_GP), rtol=1e-5, atol=1e-6
    )


def test_task_arithmetic_goes_as_far_as_is_best_on_the_targets_windows():
    one = make("merged-task-arithmetic", scalings=(0.25, 1.0, 3.0))
    generic_P, experts_GP = models_of(one)
    generator = torch.Generator().manual_seed(0)
    of_targets = [windows(weights_K, 6, generator) for weights_K in TARGETS]
    linear_WP = merged(make("merged-linear"), generic_P, experts_GP) - generic_P
    candidates = torch.stack([generic_P + scaling * linear_WP for scaling in one.scalings])
    found = merged(one, generic_P, experts_GP, windows=of_targets)
    for w, of_target in enumerate(of_targets):
        losses = torch.stack([one.loss(model_P, of_target).mean() for model_P in candidates[:, w]])
        torch.testing.assert_close(found[w], candidates[losses.argmin(), w])
    with pytest.raises(ValueError, match="windows of 0 targets"):
        merged(one, generic_P, experts_GP)


@pytest.mark.parametrize("density", [0.2, 0.6])
def test_ties_with_equal_weights_is_that_of_peft(density):
    one = make("merged-ties", densities=(density,), **PLAIN)
    from peft.utils.merge_utils import ties  # deptry: ignore[DEP004]

    generic_P, experts_GP = models_of(one)
    equal_1K = torch.full((1, K), 1 / K)
    parts = [
        ties(list(deltas_Gp), torch.ones(K), density) for deltas_Gp in by_tensor(one, experts_GP - generic_P)
    ]
    found_P = merged(one, generic_P, experts_GP, equal_1K)[0] - generic_P
    torch.testing.assert_close(found_P, torch.cat(parts), rtol=1e-5, atol=1e-6)


def test_what_one_expert_alone_keeps_goes_as_far_as_that_expert():
    one = make("merged-ties", densities=(0.5,), **PLAIN)
    generic_P, experts_GP = models_of(one)
    experts_GP = torch.where(torch.arange(K)[:, None] == 0, experts_GP, generic_P)
    found_P = merged(one, generic_P, experts_GP, torch.tensor([[0.7, 0.1, 0.1, 0.1]]))[0] - generic_P
    change_P = experts_GP[0] - generic_P
    torch.testing.assert_close(found_P[found_P != 0], change_P[found_P != 0], rtol=1e-5, atol=1e-6)
    assert (found_P != 0).float().mean() > 0.4


def ties_of_mergekit(one, generic_P, experts_gP, weights, density):
    """By mergekit's own code: the vote is weighted, and the sum divided by the weights of those that agree."""
    from mergekit.merge_methods import registry  # deptry: ignore[DEP004]

    numbers = range(len(weights))
    parameters = {
        "density": dict.fromkeys(numbers, density), "weight": dict(enumerate(weights)), "rescale": False,
        "normalize": True, "int8_mask": False, "lambda": 1,
    }  # fmt: skip
    parts = []
    for (base_p,), entries_gp in zip(
        by_tensor(one, generic_P[None]), by_tensor(one, experts_gP), strict=True
    ):
        group = SimpleNamespace(
            base=SimpleNamespace(tensor=base_p),
            non_base=[SimpleNamespace(tensor=entries_gp[i], id=i) for i in numbers],
        )
        parts.append(registry.get("ties").merge_group(group, **parameters))
    return torch.cat(parts)


def test_ties_is_that_of_mergekit():
    needs("mergekit", extra="exports")
    one = make("merged-ties", densities=(0.25,), **PLAIN)
    generic_P, experts_GP = models_of(one)
    uneven = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    found = merged(one, generic_P, experts_GP, uneven)[0]
    of_mergekit = ties_of_mergekit(one, generic_P, experts_GP, uneven[0].tolist(), 0.25)
    torch.testing.assert_close(found, of_mergekit, rtol=1e-5, atol=1e-6)
    weights_G1, parts = uneven[0].double()[:, None], []
    for deltas_Gp in by_tensor(one, experts_GP - generic_P):
        kept_Gp = weights_G1 * trimmed(deltas_Gp, 0.25)
        agree_Gp = kept_Gp.sign() == torch.where(kept_Gp.sum(0) >= 0, 1, -1)
        agreeing_p = (weights_G1 * agree_Gp).sum(0)
        parts.append((kept_Gp * agree_Gp).sum(0) / torch.where(agreeing_p == 0, 1, agreeing_p))
    torch.testing.assert_close(of_mergekit, generic_P + torch.cat(parts).float(), rtol=1e-5, atol=1e-6)


def test_dare_is_its_seeds_and_on_average_the_linear_merge():
    one = make("merged-dare", seed=1, **PLAIN)
    generic_P, experts_GP = models_of(one)
    linear = merged(make("merged-linear"), generic_P, experts_GP)
    before = torch.random.get_rng_state()
    first = merged(one, generic_P, experts_GP)
    assert torch.equal(first, merged(one, generic_P, experts_GP))
    assert torch.equal(torch.random.get_rng_state(), before)
    draws = torch.stack(
        [merged(make("merged-dare", seed=seed, **PLAIN), generic_P, experts_GP) for seed in range(64)]
    )
    assert torch.equal(draws[1], first) and not torch.equal(draws[0], first)
    off = (draws.mean(0) - linear) / (draws.std(0) / 8)
    # Of 64 draws a parameter with few experts is far from normal, but the mean of so many parameters is not.
    assert off.mean().abs() < 5 / off.numel() ** 0.5
    assert 0.8 < off.square().mean() < 1.2


def test_without_peft_the_extra_is_named_before_anything_is_trained(monkeypatch):
    needs("peft", extra="exports")
    monkeypatch.setattr(merging, "find_spec", lambda name: None)
    for name in NAMES[2:]:
        with pytest.raises(ValueError, match=r"pip install 'soup-of-experts\[exports\]'"):
            make(name)
    assert make("merged-linear").runs()


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("merged-ties", {"densities": (0.2, 1.0)}, "each must be above 0 and below 1"),
        ("merged-dare", {"densities": (0.0,)}, "each must be above 0 and below 1"),
        ("merged-linear", {"scalings": ()}, "scalings is empty"),
    ],
)
def test_what_cannot_be_merged_is_refused(name, options, said):
    with pytest.raises(ValueError, match=said):
        make(name, **options)


def test_a_merge_costs_its_sums_and_its_choice():
    linear, branched = make("merged-linear").cost(), make("branched-experts").cost()
    assert linear.pretraining_flops == branched.pretraining_flops
    assert linear.specialist_flops == 2 * K * linear.specialist_size
    ties = make("merged-ties", densities=(0.2, 0.5), scalings=(1.0, 2.0)).cost()
    assert ties.specialist_flops == 2 * linear.specialist_flops + make("merged-ties").choice_flops(4)
