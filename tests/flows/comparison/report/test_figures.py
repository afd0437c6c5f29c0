"""The sentence of each figure of the paper, from made-up losses in both directions, and from too few seeds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flows.comparison.fine_tuning import LEARNING
from flows.comparison.further import FURTHER
from flows.comparison.measuring import FINISHED
from flows.comparison.report import by_size
from flows.comparison.report.by_number import AT_ONCE
from flows.comparison.report.compared import Compared
from flows.comparison.report.few_texts import TEXTS
from flows.comparison.report.figures import AS_HOPED, AS_THERE, NOT_HERE, figures
from flows.comparison.sets import GENERIC
from tests.flows.comparison import toy

SETS = "first", "second"
NOISE = (0.0, 0.01, -0.01)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return toy.toy_store(tmp_path_factory.mktemp("stores"))


@pytest.fixture(scope="module")
def sets(store):
    few = {1: torch.eye(4)[[2, 3]], 3: torch.eye(4)[[0]]}
    return [
        replace(one, texts=4, few_texts=few if one.kind != "generic" else {}) for one in toy.toy_sets(store)
    ]


def cells(label, loss, *, generic=4.0, seeds=3, served=100, trained=100, tuned=(), **asked):
    """Finished cells of an entry whose losses on the sets are `loss`, and a little else with each seed.

    Args:
        tuned: numbers of tokens for fine-tuning, and the loss after it.
    """
    found = []
    for seed, noise in enumerate(NOISE[:seeds]):
        noise = noise * (1 + len(label) / 10)  # not the same for all entries
        end = {**dict.fromkeys(SETS, loss + noise), GENERIC: generic + noise}
        points = [{"tokens": 800, "losses": end}]
        after = [
            {"tokens": tokens, "sets": {name: {"window_losses": [then + noise]} for name in SETS}}
            for tokens, then in tuned
        ]
        found.append(
            {
                "method": label,
                "seed": seed,
                "status": FINISHED,
                "points": points,
                "cost": {"specialist_size": served, "pretrained_size": trained},
                "fine_tuned": {"said": "", "points": after},
                FURTHER: {name: of_noise(noise) for name, of_noise in asked.items()},
            }
        )
    return found


def few(one, three):
    return lambda noise: dict.fromkeys(SETS, [one + noise, one - noise, three + noise])


def at_once(alone, together):
    """Of two sets: a model for each, and one for both."""
    return lambda noise: dict.fromkeys(SETS, [alone + noise, together + noise])


def options(**of):
    return {f"soup:{name}": given for name, given in of.items()}


SUPPORT = options(s1={"support_size": 1}, s2={"support_size": 2}, s4={"support_size": 4})
LARGER = {"soup:larger": {"preset": "small"}, "generic:larger": {"preset": "small"}}
EXPERTS = options(dense={"num_experts": 4}, low={"num_experts": 8, "expert_rank": 2})


def support(one, two, four, generics=(4.3, 4.2, 4.1)):
    losses = zip(SUPPORT, (one, two, four), generics, strict=True)
    return [(label, loss, {"generic": generic}) for label, loss, generic in losses]


def sizes(*losses):
    labels = zip(("soup", "generic", *LARGER), (100, 100, 300, 300), losses, strict=True)
    return [(label, loss, {"served": served}) for label, served, loss in labels]


CASES = {
    "Figure 4": (
        {},
        [("soup", 3.0, {}), ("generic", 3.4, {}), ("crisp", 2.5, {}), ("domain-experts", 3.2, {})],
        "mixture, minus 0.02, lies 0.020 ± 0.005 below generic's; on all, the soup's lies 0.200",
        [("soup", 3.0, {}), ("generic", 2.8, {})],
        "sets lies 0.200",
    ),
    "Figure 4  ": (
        {},
        [("soup", 3.0, {}), ("generic", 3.4, {})],
        "unseen sets lies 0.400 ± 0.005 below generic's",
        [("soup", 3.0, {"generic": 4.05}), ("generic", 3.4, {})],
        "because the soup's loss on the generic mixture, minus 0.02, lies 0.030",
    ),
    "Figure 4 ": (
        {"crisp:shared": {"shared_by": 2}, "crisp:more": {"shared_by": 1}},
        [("soup", 3.0, {}), ("generic", 3.4, {}), ("crisp:more", 2.5, {}), ("crisp:shared", 3.2, {})],
        "0.200 ± 0.013 below CRISP's with as many tokens in all",
        [("soup", 3.0, {}), ("generic", 3.4, {}), ("crisp:shared", 2.9, {})],
        "above CRISP's with as many tokens in all",
    ),
    "Figure 6": (
        {},
        [("soup", 3.0, {"tuned": [(64, 2.9), (640, 2.7)]}), ("generic", 3.4, {"tuned": [(64, 3.2), (640, 2.9)]})],
        "after fine-tuning on 64 tokens lies 0.300",
        [("soup", 3.0, {"tuned": [(64, 2.9), (640, 2.7)]}), ("generic", 3.4, {"tuned": [(64, 3.2), (640, 2.5)]})],
        "because the soup's loss after fine-tuning on 640 tokens lies 0.200",
    ),
    "Figure 7, left": (
        LARGER,
        sizes(3.0, 3.4, 2.8, 3.0),
        "the soup's loss with 300 parameters lies 0.200",
        sizes(3.0, 3.4, 3.2, 3.0),
        "because the soup's loss with 300 parameters lies 0.200",
    ),
    "Figure 7, right": (
        {},
        [("soup", 3.0, {TEXTS: few(3.5, 3.1)}), ("generic", 3.4, {})],
        "the soup's loss with all texts lies 0.500",
        [("soup", 3.0, {TEXTS: few(2.9, 2.9)}), ("generic", 3.4, {})],
        "because the soup's loss with all texts lies 0.100",
    ),
    "Figure 8": (
        SUPPORT,
        support(3.4, 3.0, 3.2),
        "the loss on the sets with 2 domains in a mixture lies 0.400",
        support(3.0, 3.1, 3.2),
        "because the loss on the sets with 2 domains in a mixture lies 0.100",
    ),
    "Figure 9": (
        EXPERTS,
        [("soup:dense", 3.0, {"trained": 500}), ("soup:low", 3.3, {"trained": 510})],
        "the loss of soup:dense with dense experts lies 0.300",
        [("soup:dense", 3.3, {"trained": 500}), ("soup:low", 3.0, {"trained": 510})],
        "because the loss of soup:dense with dense experts lies 0.300",
    ),
    "Figure 10": (
        {},
        [("soup", 3.0, {AT_ONCE: at_once(3.0, 3.2)}), ("merged-linear", 2.9, {AT_ONCE: at_once(2.9, 3.4)})],
        "the merge's loss for 1 set lies 0.100",
        [("soup", 3.0, {AT_ONCE: at_once(3.0, 3.5)}), ("merged-linear", 2.9, {AT_ONCE: at_once(2.9, 3.4)})],
        "because the soup's loss for 2 sets at once lies 0.100",
    ),
}  # fmt: skip


def sentence(store, sets, figure, options, entries, **more):
    labels = list(dict.fromkeys(label for label, _, _ in entries))
    of_labels = {label: given for label, given in options.items() if label in labels}
    chosen = toy.settings(store.folder.parent, methods=labels, options=of_labels)
    made = [cell for label, loss, given in entries for cell in cells(label, loss, **given, **more)]
    found = figures(Compared(settings=chosen, sets=sets, cells=made))
    return next(one for one in found if one["figure"] == figure.strip())


@pytest.mark.parametrize("figure", CASES)
def test_in_both_directions_and_with_one_seed(store, sets, figure):
    options, as_there, holds, otherwise, fails = CASES[figure]
    found = sentence(store, sets, figure, options, as_there)
    assert found["verdict"] == AS_THERE and holds in found["said"]
    assert found["said"].startswith(f"{figure.strip()} (") and ": as in the paper: " in found["said"]
    found = sentence(store, sets, figure, options, otherwise)
    assert found["verdict"] == NOT_HERE and fails in found["said"]
    found = sentence(store, sets, figure, options, as_there, seeds=1)
    assert found["verdict"] == NOT_HERE and "because 1 seed is too few to tell whether" in found["said"]


@pytest.mark.parametrize("figure", CASES)
def test_what_was_not_measured_is_said(store, sets, figure):
    found = sentence(store, sets, figure, {}, [("pareto", 3.0, {})])
    assert found["verdict"] == NOT_HERE and f"): {NOT_HERE}, because " in found["said"]


def test_every_figure_has_a_sentence(store, sets):
    found = figures(Compared(settings=toy.settings(store.folder.parent), sets=sets, cells=[]))
    named = [one["figure"] for one in found]
    assert {name.strip() for name in CASES} | {"Figure 5"} < set(named) and len(named) == len(set(named)) == 9
    assert all(one["said"].startswith(one["figure"]) and one["said"].endswith(".") for one in found)


def test_fine_tunings_that_were_cut_off_tell_nothing(store, sets):
    _, entries, *_ = CASES["Figure 6"]
    made = [cell for label, loss, more in entries for cell in cells(label, loss, **more)]
    for cell in made:
        for point in cell["fine_tuned"]["points"]:
            for of_set in point["sets"].values():
                of_set["best_step"] = LEARNING.steps
    found = figures(Compared(settings=toy.settings(store.folder.parent), sets=sets, cells=made))
    [said] = [one["said"] for one in found if one["figure"] == "Figure 6"]
    assert f"not here, because most of the fine-tunings still got better after {LEARNING.steps} steps" in said


@pytest.mark.parametrize(("spearman", "verdict"), [(0.8, AS_HOPED), (0.1, NOT_HERE)])
def test_the_surface(store, sets, spearman, verdict):
    ranked = {"spearman": spearman, "error": 0.1, "regret": 0.01, "mean_regret": 0.3}
    made = {"mixtures": [0, 1, 2, 3], "seeds_agree": None, "ranked": [{"method": "soup"} | ranked]}
    chosen = toy.settings(store.folder.parent, mixtures=4)
    said = figures(Compared(settings=chosen, sets=sets, cells=[], surface=made))[-1]
    assert said["verdict"] == verdict and f"Spearman {spearman:.2f} ± 0.10" in said["said"]


def test_soups_that_differ_in_more_are_not_compared(store, sets):
    given = EXPERTS | {"soup:low": {"num_experts": 8, "expert_rank": 2, "support_size": 1}}
    entries = [("soup:dense", 3.0, {"trained": 500}), ("soup:low", 3.3, {"trained": 510})]
    assert "no soups of dense and of low-rank" in sentence(store, sets, "Figure 9", given, entries)["said"]
    apart = [("soup:dense", 3.0, {"trained": 500}), ("soup:low", 3.3, {"trained": 600})]
    assert "no soups of dense and of low-rank" in sentence(store, sets, "Figure 9", EXPERTS, apart)["said"]


@pytest.mark.parametrize("law", [{}, {"by_size": True}])
def test_the_charts_by_size(store, sets, law):
    """Also where all soups have an option in common; an entry with another rate alone is no other size."""
    given = LARGER | EXPERTS | {"soup": {}, "soup:fast": {"learning_rate": 1.0}}
    given = {label: of | law if label.startswith("soup") else of for label, of in given.items()}
    chosen = toy.settings(
        store.folder.parent, methods=[*dict.fromkeys(["soup", "generic", *given])], options=given
    )
    made = [
        *cells("soup", 3.0, trained=300), *cells("generic", 3.4), *cells("soup:larger", 2.8, served=300, trained=900),
        *cells("generic:larger", 3.0, served=300), *cells("soup:dense", 3.1, trained=500),
        *cells("soup:low", 3.3, trained=510), *cells("soup:fast", 9.0, trained=300),
    ]  # fmt: skip
    found = by_size.collect_sizes(chosen, made, sets)["curves"]
    assert {name: [point["at"] for point in curve] for name, curve in found.items()} == {
        "soup": [100, 300], "generic": [100, 300],
    }  # fmt: skip
    assert found["generic"][1]["mean"] == pytest.approx(3.0) and found["generic"][1]["sd"] > 0
    assert found["soup"][0]["mean"] == pytest.approx(3.0)
    found = by_size.collect_experts(chosen, made, sets)["curves"]
    assert {name: [point["at"] for point in curve] for name, curve in found.items()} == {
        "dense": [300, 500], "low-rank, 8 experts": [510],
    }  # fmt: skip
    assert by_size.collect_sizes(chosen, made[:6], sets) is None
    assert by_size.collect_experts(chosen, made[:6], sets) is None
