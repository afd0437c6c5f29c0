"""What few texts are worth: their domain weights, the losses of a soup's models of them, the sentence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from flows.comparison.cells import train_and_measure
from flows.comparison.further import FURTHER
from flows.comparison.measuring import FINISHED
from flows.comparison.read_sets import _of_few
from flows.comparison.report import few_texts
from flows.comparison.sets import load_sets, save_sets
from tests.flows.comparison import toy


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return toy.toy_store(tmp_path_factory.mktemp("stores"))


def sets_of_few(store):
    """The toy sets; one text points to a domain in each of two draws, three texts to the set's own."""
    of_few = [
        {1: torch.eye(4)[[2, 3]], 3: torch.eye(4)[[number]]} for number in range(2)
    ]  # fmt: skip
    return [
        replace(one, texts=4, few_texts=few)
        for one, few in zip(toy.toy_sets(store), [*of_few, {}], strict=True)
    ]


def test_few_texts_are_taken_from_all_of_them_and_none_twice(store, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "flows.comparison.read_sets.assign_to_domains",
        lambda vectors_ND, tree: drawn.append(vectors_ND[:, 0].tolist()),
    )
    monkeypatch.setattr("flows.comparison.read_sets._weights", lambda assignment, windows_K: torch.zeros(4))
    found = _of_few(np.arange(12.0)[:, None], store, np.ones(4))
    assert drawn == [[0], [1], [2], [0, 4, 8], [1, 5, 9], [2, 6, 10], list(range(10))]
    assert {number: len(weights) for number, weights in found.items()} == {1: 3, 3: 3, 10: 1}


def test_the_weights_of_few_texts_are_read_as_they_were_written(tmp_path, store):
    sets = sets_of_few(store)
    save_sets(tmp_path, sets)
    for before, after in zip(sets, load_sets(tmp_path), strict=True):
        assert before.texts == after.texts and before.few_texts.keys() == after.few_texts.keys()
        assert all((before.few_texts[n] == after.few_texts[n]).all() for n in before.few_texts)


def test_a_soup_is_measured_with_the_weights_of_few_texts(tmp_path, store):
    chosen = toy.settings(store.folder.parent, points=1, checkpoint_seconds=60)
    sets = sets_of_few(store)
    asked = few_texts.question(sets)
    assert asked is not None
    assert asked.rows == {"first": [0, 1, 2], "second": [3, 4, 5]}
    there = replace(toy.place(tmp_path, store, chosen), sets=sets, questions={few_texts.TEXTS: asked})
    (there.folder / "progress").mkdir()
    soup, generic = (train_and_measure(there, one)[0] for one in toy.all_pretrainings(chosen, store))
    assert FURTHER not in generic
    found = few_texts.collect_few_texts([soup, generic], sets)
    [one, three, everything] = found["curves"]["soup"]
    assert [point["at"] for point in (one, three, everything)] == [1, 3, 4]
    assert three["mean"] == pytest.approx(everything["mean"], rel=1e-6)  # the weights are the same
    losses = soup[FURTHER][few_texts.TEXTS]
    draws = [(losses["first"][draw] + losses["second"][draw]) / 2 for draw in range(2)]
    assert (one["mean"], one["sd"]) == (pytest.approx(np.mean(draws)), pytest.approx(np.std(draws, ddof=1)))
    assert one["mean"] > three["mean"]  # of other domains' weights
    at_the_end = [generic["points"][-1]["losses"][name] for name in ("first", "second")]
    assert found["flat"] == {"generic": {"mean": pytest.approx(np.mean(at_the_end)), "sd": None}}


def synthetic(store, losses, generic):
    """What is found where a soup has these losses with one text, three, and all."""
    names, (one, three, everything) = ("first", "second"), losses
    cells = [
        {
            "method": "soup", "seed": 0, "status": FINISHED,
            "points": [{"losses": dict.fromkeys(names, everything)}],
            FURTHER: {few_texts.TEXTS: dict.fromkeys(names, [one, one, three])},
        },
        {"method": "generic", "seed": 0, "status": FINISHED, "points": [{"losses": dict.fromkeys(names, generic)}]},
    ]  # fmt: skip
    return few_texts.collect_few_texts(cells, sets_of_few(store))


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        (
            (3.6, 3.3, 3.0),
            "as good as the generic model (3.400) with 3, and has 90% of what all of them gain with 4.",
        ),
        (
            (3.3, 3.02, 3.0),
            "as good as the generic model (3.400) with 1, and has 90% of what all of them gain with 3.",
        ),
        ((3.9, 3.8, 3.5), "not with all of them is it below the generic model's (3.400)."),
        ((None, 3.2, 3.2), "of a soup is 3.200 with 3, 3.200 with 4: it is as good"),
    ],
)
def test_the_sentence(store, losses, said):
    assert said in few_texts.answer(synthetic(store, losses, 3.4))


def test_sets_without_weights_of_few_texts_have_no_curve(store):
    assert few_texts.question(toy.toy_sets(store)) is None
    assert few_texts.collect_few_texts([], toy.toy_sets(store)) is None
