"""A comparison's cells on a toy store: cut off, finished, diverged, failed; alone and side by side."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from flows.comparison import training as training_module
from flows.comparison.cells import DIVERGED, FAILED, run_cells, train_and_measure
from flows.comparison.measuring import FINISHED
from flows.comparison.place import RESULT
from flows.comparison.sets import load_sets, save_sets
from flows.comparison.training import Training, point_steps
from pipeline.mixtures.compositions import Mixed
from pipeline.mixtures.meta_distributions import Sparse
from storage_schema.errors import UserError
from tests.flows.comparison import toy


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return toy.toy_store(tmp_path_factory.mktemp("stores"))


def prepared(tmp_path, store, **given):
    chosen = toy.settings(store.folder.parent, **given)
    there = toy.place(tmp_path / "comparison", store, chosen)
    (there.folder / "progress").mkdir(parents=True, exist_ok=True)
    return there, toy.all_pretrainings(chosen, store)


def losses(results):
    return [[point["losses"] for point in cell["points"]] for cell in results]


def test_a_run_that_was_cut_off_goes_on_and_ends_the_same(tmp_path, store, monkeypatch):
    methods = ["branched-experts", "merged-linear"]
    whole, [pretraining] = prepared(tmp_path / "whole", store, methods=methods)
    expected = losses(train_and_measure(whole, pretraining))
    cut, [pretraining] = prepared(tmp_path / "cut", store, methods=methods)
    # Of 24 steps: 12 of the generic run, then 3 of the first group.
    toy.train_until(cut, store, pretraining, 15)
    begun_at = []
    in_process = training_module.MixtureStream.in_process
    monkeypatch.setattr(
        training_module.MixtureStream,
        "in_process",
        lambda stream, start, stop: begun_at.append((start, stop)) or in_process(stream, start, stop),
    )
    assert losses(train_and_measure(cut, pretraining)) == expected
    assert begun_at == [(2, 6), (0, 6)]


def test_a_damaged_checkpoint_is_said_and_the_run_begins_anew(tmp_path, store, capsys):
    there, [pretraining] = prepared(tmp_path, store, methods=["generic"])
    stage = toy.train_until(there, store, pretraining, 20)
    [file] = stage.scratch.glob("generic/step-*.safetensors")
    file.write_bytes(file.read_bytes()[:-8])
    [cell] = train_and_measure(there, pretraining)
    assert cell["status"] == FINISHED and "is damaged" in capsys.readouterr().out


def test_what_is_finished_is_not_trained_again_and_a_new_method_uses_it(tmp_path, store, monkeypatch):
    there, [pretraining] = prepared(tmp_path, store, methods=["branched-experts"])
    first = train_and_measure(there, pretraining)
    monkeypatch.setattr(Training, "_train", lambda *a: pytest.fail("it was trained again"))
    there, [pretraining] = prepared(tmp_path, store, methods=["branched-experts", "merged-linear"])
    both = train_and_measure(there, pretraining)
    assert both[0] == first[0] and both[1]["status"] == FINISHED and both[1]["method"] == "merged-linear"


def test_each_cell_says_what_became_of_it_and_the_others_go_on(ray_cluster, tmp_path, store, monkeypatch):
    methods = ["soup", "generic", "generic:wild", "crisp"]
    there, found = prepared(
        tmp_path, store, methods=methods, options={"generic:wild": {"learning_rate": 1e30, "warmup_steps": 0}}
    )
    cells = {cell["method"]: cell for cell in run_cells(there, found, {})}
    assert {name: cell["status"] for name, cell in cells.items()} == dict.fromkeys(methods, FINISHED) | {
        "generic:wild": DIVERGED
    }
    assert "loss" in cells["generic:wild"]["said"]
    assert json.loads((there.folder / "cells/generic@wild-seed-0" / RESULT).read_text())["status"] == DIVERGED
    tokens = [[point["tokens"] for point in cells[name]["points"]] for name in ("soup", "generic", "crisp")]
    assert tokens == [[256, 512, 768]] * 2 + [[512, 1024, 1536]]  # CRISP trains for each of two sets
    assert "generic mixture" in cells["soup"]["points"][-1]["losses"]
    assert "generic mixture" not in cells["crisp"]["points"][-1]["losses"]
    monkeypatch.setattr("ray.remote", lambda *a: pytest.fail("a task was begun"))
    again = {cell["method"]: cell for cell in _skipped(there, found)}
    assert again == cells


def _skipped(there, found):
    from flows.comparison.place import finished

    return [cell for one in found for cell in finished(there, one)]


def test_a_method_that_fails_is_tried_again_and_those_beside_it_are_kept(tmp_path, store, monkeypatch):
    there, [pretraining] = prepared(tmp_path, store, methods=["branched-experts", "merged-linear"])
    merged = pretraining.contenders[1].method

    def broken(*arguments):
        raise RuntimeError("a fault")

    monkeypatch.setattr(type(merged), "merge", broken)
    statuses = [(cell["status"], cell["said"]) for cell in train_and_measure(there, pretraining)]
    assert statuses == [(FINISHED, ""), (FAILED, "RuntimeError: a fault")]
    monkeypatch.undo()
    assert [cell["status"] for cell in train_and_measure(there, pretraining)] == [FINISHED] * 2


def test_a_method_may_have_no_model_before_its_end(tmp_path, store, monkeypatch):
    there, [pretraining] = prepared(tmp_path, store, methods=["generic"])
    instantiate, calls = type(pretraining.method).instantiate, []

    def late(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise UserError("its gates are too small")
        return instantiate(*arguments)

    monkeypatch.setattr(type(pretraining.method), "instantiate", late)
    [cell] = train_and_measure(there, pretraining)
    assert [sorted(point["losses"]) for point in cell["points"]] == [[]] + [
        ["first", "generic mixture", "second"]
    ] * 2


def test_all_methods_draw_from_the_same_numbers(store):
    chosen = toy.settings(store.folder.parent, methods=["generic", "branched-experts"])
    generic, branched = toy.all_pretrainings(chosen, store)
    batches = [
        next(training_module.stream_of(one.runs[0], store, seed=0).in_process(0, 1)).tokens_BL1
        for one in (generic, branched)
    ]
    assert (batches[0] == batches[1]).all()


def test_two_soups_train_under_two_laws(tmp_path, store, monkeypatch):
    laws = [{"law": "sparse", "share": 0.5}, {"law": "neighbourhood", "share": 0.5}]
    options = {"soup:mixed": {"meta_distribution": "mixed", "laws": laws}}
    there, both = prepared(tmp_path, store, methods=["soup", "soup:mixed"], options=options, points=1)
    assert len({one.digest for one in both}) == 2
    drawn_from, make_plan = [], training_module.MixturePlan
    monkeypatch.setattr(
        training_module,
        "MixturePlan",
        lambda windows_K, law, **given: drawn_from.append(law) or make_plan(windows_K, law, **given),
    )
    cells = [cell for one in both for cell in train_and_measure(there, one)]
    assert [(cell["method"], cell["status"]) for cell in cells] == [
        ("soup", FINISHED),
        ("soup:mixed", FINISHED),
    ]
    sparse, mixed = drawn_from
    assert isinstance(sparse, Sparse) and sparse.support_size == 2
    assert isinstance(mixed, Mixed) and len(mixed.laws) == 2
    assert cells[0]["points"][-1]["losses"] != cells[1]["points"][-1]["losses"]


def test_points_end_with_the_run(store):
    [one] = toy.all_pretrainings(toy.settings(store.folder.parent, methods=["generic"]), store)
    assert point_steps(one.runs[0], 3) == [8, 16, 24] and point_steps(one.runs[0], 100)[-1] == 24


def test_sets_are_read_as_they_were_written(tmp_path, store):
    sets = [replace(one, notes=["3 files were not read."]) for one in toy.toy_sets(store)]
    save_sets(tmp_path, sets)
    for before, after in zip(sets, load_sets(tmp_path), strict=True):
        assert (before.name, before.kind, before.notes) == (after.name, after.kind, after.notes)
        assert (before.weights_K == after.weights_K).all()
        assert (before.evaluation_nL1 == after.evaluation_nL1).all()
