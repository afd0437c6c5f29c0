"""How long a comparison takes, and what it cannot be."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flows.comparison.cells import train_and_measure
from flows.comparison.contenders import contenders
from flows.comparison.further import Question
from flows.comparison.measuring import FINISHED
from flows.comparison.plan import Pace, Rate, left_of, makespan, steps_in_hours, steps_of_tokens
from flows.comparison.training import stream_of
from flows.settings import CompareMethods
from storage_schema.errors import UserError
from tests.extras import needs
from tests.flows.comparison import toy

RECORDED = {"law": "recorded", "share": 1.0, "ratios": "ratios.csv"}
LLAMA = {"model_type": "llama", "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3} | {
    "num_attention_heads": 4
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return toy.toy_store(tmp_path_factory.mktemp("stores"))


def test_the_longest_come_first():
    assert makespan([1, 2, 3, 4], 2) == 5
    assert makespan([7, 1, 1], 2) == 7


def test_as_many_steps_as_the_hours_hold():
    chosen = CompareMethods(hours=1 / 0.85)  # of which an hour is planned
    rates = [Rate(training=7200.0, measuring=600.0)] * 2
    assert steps_in_hours(chosen, rates, 1000, 2) == 416  # 3000 s of 7.2 s each
    assert steps_in_hours(chosen, rates[:1], 100, 2) == 41
    assert steps_in_hours(chosen, [Rate(training=72.0, measuring=0.0)], 100, 2) == 100  # the most


def test_hours_in_which_no_method_learns_are_refused():
    with pytest.raises(
        ValueError, match=r"hours is 0.01: in that time no method has 10 steps.* need \S+ hours"
    ):
        steps_in_hours(CompareMethods(hours=0.01), [Rate(training=7200.0, measuring=600.0)], 1000, 2)


def test_tokens_from_which_no_method_learns_are_refused(store):
    with pytest.raises(ValueError, match="tokens is 64, 2 steps of 32 tokens.*Give 320 at least"):
        steps_of_tokens(toy.settings(store.folder.parent, tokens=64))
    with pytest.raises(ValueError, match="give one of them"):
        steps_of_tokens(toy.settings(store.folder.parent, hours=1.0))


def test_what_is_finished_takes_no_time(tmp_path, store):
    chosen = toy.settings(store.folder.parent, methods=["soup", "branched-experts"], checkpoint_seconds=60)
    there, pace = toy.place(tmp_path / "compared", store, chosen), Pace(training=24.0, window=1.0)
    (there.folder / "progress").mkdir(parents=True)
    soup, branched = toy.all_pretrainings(chosen, store)
    all_of_it = left_of(there, soup, pace)
    assert all_of_it.training == 24.0 and all_of_it.measuring >= 3 * 9  # points, windows
    assert not list(there.folder.glob("trained/*"))  # asking leaves nothing behind
    [cell] = train_and_measure(there, soup)
    assert cell["status"] == FINISHED
    assert left_of(there, soup, pace) == Rate(training=0.0, measuring=0.0)
    asked = Question(weights_MK=torch.eye(4), rows={"first": [0, 1, 2], "second": [3]})
    there = replace(there, questions={"more": asked})
    assert left_of(there, soup, pace) == Rate(training=0.0, measuring=4 * 3.0)

    # Of 24 steps: 12 of the generic run, then 3 of the first group.
    toy.train_until(there, store, branched, 15)
    assert there.steps_done(branched) == 14 and left_of(there, branched, pace).training == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"methods": ["sop"]}, "sop: no method 'sop'; there are soup, generic"),
        ({"methods": ["soup", "soup"]}, "'soup' stands in methods twice"),
        ({"methods": []}, "methods is empty"),
        ({"options": {"crisp": {}}}, "options are of 'crisp', which is not in methods: soup, generic"),
        ({"options": {"soup": {"colour": 1}}}, "soup: colour is no option of it"),
        ({"options": {"soup": {"steps": 5}}}, "soup: steps is no option of it"),
        ({"options": {"soup": {"cores_per_worker": 2}}}, "soup: cores_per_worker is no option of it"),
        ({"options": {"generic": {"use_gpu": True}}}, "generic: use_gpu is no option of it"),
        (
            {"options": {"generic": {"train_generic": True}}},
            "generic: train_generic is for methods that make",
        ),
        (
            {"methods": ["merged-linear"], "options": {"merged-linear": {"densities": 0.3}}},
            "merged-linear: densities is 0.3; it must be a list of numbers",
        ),
        (
            {"methods": ["branched-experts"], "options": {"branched-experts": {"branch_rate": "0.3"}}},
            "branched-experts: branch_rate is 0.3; it must be",
        ),
        (
            {"options": {"generic": {"meta_distribution": "uniform"}}},
            "generic: meta_distribution says how mixtures are drawn, and its runs have one mixture each",
        ),
        (
            {"options": {"soup": {"meta_distribution": "neighbourhood", "concentration": 2.0}}},
            "soup: concentration is 2.0, which meta_distribution=neighbourhood does not use",
        ),
        (
            {"options": {"soup": {"meta_distribution": "mixed", "laws": [RECORDED]}}},
            "soup: the law recorded takes its mixtures from a table",
        ),
        (
            {"methods": ["generic", "branched-experts"], "steps": 2},
            "branched-experts: of 2 steps, 2 groups have 0",
        ),
        (
            {"methods": ["domain-experts"], "options": {"domain-experts": {"groups": 0}}},
            "domain-experts: groups is 0; it must be a whole number",
        ),
        ({"options": {"soup": {"groups": 2}}}, "soup: groups is no option of it"),
        ({"methods": ["soup:a/../b"]}, "'soup:a/../b' in methods names no entry"),
        (
            {"methods": ["domain-experts"], "steps": 1},
            "domain-experts: its 2 runs have less than a step each",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(store, given, said):
    steps = given.pop("steps", 24)
    with pytest.raises(ValueError, match=said):
        for one in toy.all_pretrainings(toy.settings(store.folder.parent, **given), store, steps=steps):
            stream_of(one.runs[0], store, 0, one.law)


def mixed(**law):
    return {"meta_distribution": "mixed", "laws": [{"law": "sparse", "share": 1.0} | law]}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_experts": 0}, r"soup: num_experts: Input should be .* 1 \(got 0\)\. Leave it out of methods"),
        ({"generic_share": 2}, "soup: generic_share: it must be a number from 0 to 1"),
        (mixed(share=-1), "soup: laws.0.share: Input should be greater than 0"),
        ({"support_size": 9}, "soup: support_size is 9; it must be between 1 and the 4 domains"),
        (mixed(support_size=9), "soup: support_size is 9; it must be between 1 and the 4 domains"),
        ({"meta_distribution": "recorded"}, "soup: the law recorded takes its mixtures from a table"),
        ({"meta_distribution": "fixed"}, "soup: the law fixed takes its mixtures from a table"),
        (mixed(law="recorded"), "soup: the law recorded takes its mixtures from a table"),
    ],
)
def test_an_option_that_cannot_be_is_refused_before_any_stream(store, options, said):
    chosen = toy.settings(store.folder.parent, options={"soup": options})
    with pytest.raises(UserError, match=said):
        contenders(chosen, store, seed=0, steps=24)


def test_domain_experts_share_the_tokens_and_take_the_plain_rate(store):
    chosen = toy.settings(store.folder.parent, methods=["soup", "domain-experts"])
    soup, experts = contenders(chosen, store, seed=0, steps=24)
    assert [run.training.steps for run in experts.method.runs()] == [12, 12]
    rates = [one.method.training.learning_rate for one in (soup, experts)]
    assert rates == [1e-2, 1.5e-2]


def test_an_entry_may_have_other_groups(store):
    methods = ["domain-experts", "domain-experts:more"]
    options = {"domain-experts:more": {"groups": 4}}
    chosen = toy.settings(store.folder.parent, methods=methods, options=options)
    few, many = contenders(chosen, store, seed=0, steps=24)
    assert [len(one.method.runs()) for one in (few, many)] == [2, 4]


@pytest.mark.parametrize(("steps", "of_one_run", "of_two"), [(24, 8, 4), (360, 120, 60), (2400, 300, 300)])
def test_every_run_has_the_presets_warm_up_or_a_third_of_itself(store, steps, of_one_run, of_two):
    """At 360 steps a tenth cost the twin 0.46 nats on the generic mixture, and the soup, whose rate is lower, 0.12."""
    chosen = toy.settings(store.folder.parent, methods=["soup", "generic", "domain-experts"])
    soup, generic, experts = contenders(chosen, store, seed=0, steps=steps)
    warm_ups = [one.method.runs()[0].training.warmup_steps for one in (soup, generic, experts)]
    assert warm_ups == [of_one_run, of_one_run, of_two]


def test_the_members_of_pareto_have_the_plain_rate_and_smears_experts_do_not(store):
    """At 360 steps Pareto lay 1.1 nats above generic with the rate that suits a soup's sums. At 1,600, SMEAR lost 0.24
    with the plain rate for experts and routers."""
    options = {"pareto:slow": {"learning_rate": 2e-3}, "smear:apart": {"expert_learning_rate": 1e-3}}
    chosen = toy.settings(store.folder.parent, methods=["soup", "pareto", "smear", *options], options=options)
    trainings = [one.method.training for one in contenders(chosen, store, seed=0, steps=24)]
    rates = [(one.learning_rate, one.expert_learning_rate, one.router_learning_rate) for one in trainings]
    assert rates == [
        (1e-2, 4e-3, 1e-3), (1.5e-2, 1.5e-2, 1e-3), (1.5e-2, 4e-3, 1e-3), (2e-3, 2e-3, 1e-3), (1.5e-2, 1e-3, 1e-3),
    ]  # fmt: skip


def test_each_seed_draws_what_is_dropped_anew(store):
    needs("peft", extra="exports")
    chosen = toy.settings(store.folder.parent, methods=["merged-dare"])
    assert [contenders(chosen, store, seed=seed, steps=24)[0].method.seed for seed in (0, 3)] == [0, 3]


def test_variants_are_not_fine_tuned(tmp_path, store):
    options = {"soup:few": {"num_experts": 1}, "generic:wide": {"backbone": dict(LLAMA)}}
    chosen = toy.settings(
        store.folder.parent, methods=["soup", *options], options=options, fine_tune_tokens=[8]
    )
    there = toy.place(tmp_path, store, chosen)
    tuned = {one.label: there.tuned_on(one) for one in contenders(chosen, store, seed=0, steps=24)}
    assert tuned == {"soup": (8,), "soup:few": (), "generic:wide": (8,)}


def test_a_larger_backbone_for_one_entry_has_the_same_tokens_and_its_own_cost(store):
    larger = {
        "generic:larger": {"preset": "small", "warmup_steps": 2},
        "generic:wide": {"backbone": dict(LLAMA)},
    }
    methods = ["generic", *larger]
    chosen = toy.settings(store.folder.parent, methods=methods, options=larger, batch_size=None)
    plain, deep, wide = (one.method for one in contenders(chosen, store, seed=0, steps=24))
    # Of the comparison's preset: the larger one's batch is twice as large.
    assert [one.training.batch_size for one in (plain, deep, wide)] == [16] * 3
    assert [one.runs()[0].tokens for one in (plain, deep, wide)] == [24 * 16 * toy.LENGTH] * 3
    assert (deep.size.num_layers, deep.training.learning_rate, deep.training.warmup_steps) == (4, 3e-3, 2)
    for one in (deep, wide):
        model = one.begin(one.runs()[0]).instantiate(torch.full((1, 4), 0.25))
        assert one.cost().specialist_size == model.shape[1] > plain.cost().specialist_size
        assert one.cost().token_flops > plain.cost().token_flops
    assert len({one.digest for one in toy.all_pretrainings(chosen, store)}) == 3


def test_a_size_gives_what_is_not_given():
    chosen = CompareMethods(seeds=[5], tokens=1000).of_size()
    assert (chosen.seeds, chosen.preset, chosen.hours) == ([5], "tiny", None)
    assert CompareMethods().of_size().hours == 0.35
    assert CompareMethods(size="full").of_size().methods is None


def test_an_option_is_the_methods_own_where_it_has_one_of_that_name_and_nothing_is_the_presets(store):
    options = {"branched-experts": {"generic_share": 0.25}, "generic": {"learning_rate": None}}
    chosen = toy.settings(store.folder.parent, methods=[*options], options=options)
    branched, generic = contenders(chosen, store, seed=0, steps=24)
    assert branched.method.generic_share == 0.25 and not branched.law
    assert generic.method.training.learning_rate == 1.5e-2
