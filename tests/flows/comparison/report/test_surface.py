"""Mixtures that models are trained on, and whether a soup's losses of them rank them alike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from flows.comparison.cells import train_and_measure
from flows.comparison.contenders import contenders, of_mixture
from flows.comparison.further import FURTHER, Question
from flows.comparison.measuring import FINISHED
from flows.comparison.place import finished
from flows.comparison.report import surface
from flows.comparison.training import Training
from pipeline.mixtures.ratios import read_ratios, read_table
from tests.flows.comparison import toy

CENTROIDS_KD = np.eye(4)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return toy.toy_store(tmp_path_factory.mktemp("stores"))


def test_models_are_trained_on_the_mixtures_and_a_soup_is_asked_for_them(tmp_path, store, monkeypatch):
    chosen = toy.settings(store.folder.parent, mixtures=4, points=1, checkpoint_seconds=60)
    sets = toy.toy_sets(store)
    asked = surface.question(chosen, store, sets)
    assert (asked.weights_MK > 0).sum(1).tolist() == [2] * 4 and len(
        set(map(tuple, asked.weights_MK.tolist()))
    ) == 4
    there = replace(toy.place(tmp_path, store, chosen), questions={surface.SURFACE: asked})
    (there.folder / "progress").mkdir()
    soup, generic = toy.all_pretrainings(chosen, store)
    mixtures = surface.trainings(chosen, store, asked, seed=0, steps=24)
    for weights_K, one in zip(asked.weights_MK, mixtures, strict=True):
        [run] = one.runs
        assert (run.domain_weights_K == weights_K).all() and run.training.steps == 24

    cells = [cell for one in (soup, generic, *mixtures) for cell in train_and_measure(there, one)]
    assert [FURTHER in cell for cell in cells] == [True] + [False] * 5
    learner = soup.method.begin(soup.runs[0])
    learner.load_state_dict(load_file(there.training(soup).folder / "soup-state.safetensors"))
    [model_P] = learner.instantiate(asked.weights_MK[2:3])
    expected = soup.method.loss(model_P, sets[1].evaluation_nL1).mean().item()
    assert cells[0][FURTHER][surface.SURFACE]["second"][2] == pytest.approx(expected, rel=1e-6)

    found = surface.collect_surface(cells, asked, sets, CENTROIDS_KD)
    assert found is not None and found["mixtures"] == [0, 1, 2, 3]
    assert found["trained"][1][3] == cells[-1]["points"][-1]["losses"]["second"]
    assert [one["method"] for one in found["ranked"]] == ["soup", surface.EMBEDDINGS]
    surface.write_tables(tmp_path / "tables", surface.mixtures_plan(chosen, store), found)
    names, domains, weights_Mk = read_table(tmp_path / "tables/soup/ratios.csv")
    assert np.float32(weights_Mk) == pytest.approx(asked.weights_MK[:, domains].numpy())
    table = pl.read_csv(tmp_path / "tables/soup/metrics.csv", schema_overrides={"run": pl.String})
    assert table["run"].to_list() == names and table["second"][2] == pytest.approx(expected, rel=1e-6)
    read_ratios(tmp_path / "tables/trained/ratios.csv")

    # What is there is neither trained nor measured again; what more mixtures ask is measured alone.
    monkeypatch.setattr(Training, "_train", lambda *a: pytest.fail("it was trained again"))
    assert finished(there, soup) == cells[:1]
    more = surface.question(chosen.model_copy(update={"mixtures": 5}), store, sets)
    assert (more.weights_MK[:4] == asked.weights_MK).all()
    wider = replace(there, questions={surface.SURFACE: more})
    assert finished(wider, soup) is None and finished(wider, generic) is not None
    [again] = train_and_measure(wider, soup)
    assert len(again[FURTHER][surface.SURFACE]["second"]) == 5


def synthetic(trained, predicted, *, seeds=1):
    """Cells of mixtures with these losses on each of the toy sets, and of a soup that predicts others."""
    names = ("first", "second", "generic mixture")
    cells = []
    for seed in range(seeds):
        cells += [
            {
                "method": of_mixture(row), "seed": seed, "status": FINISHED,
                "points": [{"losses": dict.fromkeys(names, loss)}],
            }
            for row, loss in enumerate(trained)
        ]  # fmt: skip
        answers = {surface.SURFACE: dict.fromkeys(names, list(predicted))}
        cells.append({"method": "soup", "seed": seed, "status": FINISHED, FURTHER: answers})
    return cells


def collected(store, cells, count):
    weights_MK = torch.eye(4)[torch.arange(count) % 4] * 0.5 + 0.125
    asked = Question(weights_MK=weights_MK, rows={})
    return surface.collect_surface(cells, asked, toy.toy_sets(store), CENTROIDS_KD)


def test_what_ranks_as_the_models_do_is_said_to_and_noise_is_not(store):
    trained = [3.0, 3.1, 3.2, 3.3, 3.4, 3.5, 3.6, 3.7]
    found = collected(store, synthetic(trained, [loss + 1 for loss in trained], seeds=2), 8)
    assert surface.answer(found).startswith("A soup ranks mixtures here: Spearman 1.00 ± 0.00")
    assert "(by the distance of embeddings alone" in surface.answer(found)
    assert "has 0.000 nats more than the best one, a random one 0.350." in surface.answer(found)
    noise = [3.3, 3.0, 3.6, 3.1, 3.5, 3.2, 3.4, 3.05]
    assert "does not surely rank mixtures here" in surface.answer(
        collected(store, synthetic(trained, noise), 8)
    )
    alike = surface.answer(collected(store, synthetic(trained, [3.0] * 8), 8))
    assert alike.startswith("Whether a soup ranks mixtures cannot be said")


def test_mixtures_that_failed_are_left_out_and_too_few_say_nothing(store):
    cells = synthetic([3.0, 3.1, 3.2, 3.3, 3.4], [3.0, 3.1, 3.2, 3.3, 3.4])
    cells[2] = {"method": of_mixture(2), "seed": 0, "status": "diverged", "said": "step 3"}
    found = collected(store, cells, 5)
    assert found["mixtures"] == [0, 1, 3, 4] and found["predicted"]["soup"][0] == [3.0, 3.1, 3.3, 3.4]
    cells[1] = {"method": of_mixture(1), "seed": 0, "status": "failed", "said": "out of memory"}
    assert collected(store, cells, 5) is None and "was not measured" in surface.answer(None)


@pytest.mark.parametrize(
    ("mixtures", "methods", "said"),
    [
        (3, ["soup"], "mixtures is 3: the ranks of so few"),
        (12, ["generic"], "none of the methods has models"),
    ],
)
def test_mixtures_of_which_no_ranks_come_are_refused(store, mixtures, methods, said):
    made = contenders(toy.settings(store.folder.parent, methods=methods), store, seed=0, steps=24)
    with pytest.raises(ValueError, match=said):
        surface.check(mixtures, made)
    surface.check(0, made)
