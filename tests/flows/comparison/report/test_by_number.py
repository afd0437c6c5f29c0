"""Charts by a number: sets that one model is for, an option in which entries differ, and their sentences."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flows.comparison.cells import train_and_measure
from flows.comparison.contenders import contenders
from flows.comparison.further import FURTHER
from flows.comparison.measuring import FINISHED
from flows.comparison.report import by_number
from flows.settings import CompareMethods
from tests.flows.comparison import toy

GUIDE = Path(by_number.__file__).parents[2] / "COMPARING.md"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return toy.toy_store(tmp_path_factory.mktemp("stores"))


@pytest.mark.parametrize("number", [2, 5, 8, 16, 20])
def test_every_set_comes_as_often_for_as_many_sets(number):
    together = by_number.at_once(number)
    assert all(len(set(some)) == len(some) for some in together)
    for count in {len(some) for some in together}:
        often = Counter(i for some in together if len(some) == count for i in some)
        assert len(often) == (number) and len(set(often.values())) == 1
    assert max(map(len, together)) == max(count for count in by_number.COUNTS if count <= number)


def test_one_model_for_two_sets_is_measured_on_both(tmp_path, store):
    chosen = toy.settings(store.folder.parent, methods=["branched-experts", "merged-linear"], points=1)
    sets = toy.toy_sets(store)
    asked = by_number.question_at_once(sets)
    assert asked is not None
    assert torch.equal(asked.weights_MK[2], torch.tensor([0.5, 0.5, 0.0, 0.0]))
    assert asked.rows == {"first": [0, 2], "second": [1, 2]}
    assert by_number.question_at_once(sets[:1]) is None
    there = replace(toy.place(tmp_path, store, chosen), questions={by_number.AT_ONCE: asked})
    (there.folder / "progress").mkdir()
    [pretraining] = toy.all_pretrainings(chosen, store)
    branched, merged = train_and_measure(there, pretraining)
    assert FURTHER not in branched  # it chooses by windows, not by weights
    losses = merged[FURTHER][by_number.AT_ONCE]
    alone = merged["points"][-1]["losses"]
    assert [losses[name][0] for name in asked.rows] == pytest.approx(
        [alone[name] for name in asked.rows], rel=1e-6
    )
    found = by_number.collect_at_once([branched, merged], sets)
    [one, two] = found["curves"]["merged-linear"]
    assert one == {
        "at": 1,
        "mean": pytest.approx((alone["first"] + alone["second"]) / 2, rel=1e-6),
        "sd": None,
    }
    assert two["mean"] == pytest.approx((losses["first"][1] + losses["second"][1]) / 2)
    said = f"merged-linear {one['mean']:.3f} for 1, {two['mean']:.3f} for 2 at once."
    assert by_number.answer_at_once(found).endswith(said)


def cell(label, loss, seed=0):
    losses = {"first": loss, "second": loss + 0.2, "generic mixture": 5 - loss}
    return {"method": label, "seed": seed, "status": FINISHED, "points": [{"losses": losses}]}


def collected(store, options):
    chosen = toy.settings(store.folder.parent, methods=[*dict.fromkeys(["soup", *options])], options=options)
    cells = [
        cell("soup", 1.0),
        *(cell(label, 3.0 - number / 10, seed) for number, label in enumerate(options) for seed in (0, 1)),
    ]
    return by_number.collect_options(chosen, cells, toy.toy_sets(store))


def test_entries_that_differ_in_one_number_have_a_curve(store):
    common = {"num_experts": 2}
    found = collected(store, {f"soup:s{s}": {"support_size": s} | common for s in (1, 4, 2)})
    assert list(found) == ["soup-support_size"]
    chart = found["soup-support_size"]
    assert [(one["at"], round(one["mean"], 3)) for one in chart["curves"]["specialist sets"]] == [
        (1, 3.1), (2, 2.9), (4, 3.0)
    ]  # fmt: skip
    assert by_number.answer_options(chart) == (
        "Loss of soup by support_size: least on the specialist sets at 2 (2.900), on the generic mixture at 1 (2.000)."
    )


def test_the_methods_own_entry_stands_in_the_curve_with_the_value_that_all_have(store):
    law = {"by_size": True}
    options = {"soup": law} | {f"soup:s{s}": {"support_size": s} | law for s in (1, 4, 8)}
    [chart] = collected(store, options).values()
    assert [one["at"] for one in chart["curves"]["specialist sets"]] == [1, 2, 4, 8]
    del options["soup"]  # whose mixtures then are others
    [chart] = collected(store, options).values()
    assert [one["at"] for one in chart["curves"]["specialist sets"]] == [1, 4, 8]


def test_entries_for_several_charts_may_stand_in_one_comparison(store):
    options: dict[str, dict] = {f"soup:s{s}": {"support_size": s} for s in (1, 2, 4)}
    options |= {f"soup:d{n}": {"num_experts": n} for n in (1, 2, 3)}
    options |= {f"soup:2x{r}": {"num_experts": 2, "expert_rank": r} for r in (2, 3)}
    options |= {"soup:fast": {"learning_rate": 1e-2, "support_size": 8}, "soup:half": {"backbone": {}}}
    found = collected(store, options)
    assert {name: chart["curves"]["specialist sets"][-1]["at"] for name, chart in found.items()} == {
        "soup-support_size": 4, "soup-num_experts": 3
    }  # fmt: skip


def test_the_guides_configurations_are_what_they_say(store):
    blocks = re.findall(r"^```json\n(.*?)^```", GUIDE.read_text("utf-8"), flags=re.S | re.M)
    merging, support, low_rank = (CompareMethods(**json.loads(block)).of_size() for block in blocks)
    assert {"soup", "merged-linear"} <= set(merging.methods)
    assert set(support.options) <= set(support.methods)
    assert [*by_number.by_option(support)[by_number.SOUP, "support_size"]] == [1, 2, 4, 8, 16]
    fitting = low_rank.model_copy(update={"support_size": 2})  # the preset's has more domains than the store
    made = contenders(fitting, store, seed=0, steps=24)
    size = {one.label.removeprefix("soup:"): one.method.cost().pretrained_size for one in made}
    for dense, low in (("d1", "16x6"), ("d2", "32x6"), ("d4", "64x6"), ("d2", "16x12")):
        assert size[low] == pytest.approx(size[dense], rel=0.05)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"soup:a": {"support_size": 1}, "soup:b": {"support_size": 2}},
        {"soup:a": {"support_size": 1}, "soup:b": {"support_size": 2}, "soup:c": {"num_experts": 3}},
        {"soup:a": {"optimizer": "adam"}, "soup:b": {"optimizer": "x"}, "soup:c": {"optimizer": "y"}},
        {"soup:a": {"scalings": [1.0]}, "soup:b": {"scalings": [2.0]}, "soup:c": {"scalings": [3.0]}},
        {"soup:a": {"support_size": 1}, "soup:b": {"support_size": 1}, "soup:c": {"support_size": 2}},
    ],
)
def test_others_have_none(store, options):
    assert collected(store, options) == {}
