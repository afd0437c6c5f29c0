"""Fine-tuning in a comparison: what learns from which text, what is kept when it is cut off, and what is said."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from flows.comparison import fine_tuning
from flows.comparison.cells import train_and_measure
from flows.comparison.contenders import contenders
from flows.comparison.fine_tuning import NOT_ONE, _rows, curve_of, fine_tuned, in_words, windows_read
from flows.comparison.place import Place
from flows.comparison.sets import targets
from soe_model.methods.flat import FlatMethod
from soe_model.specialists.coefficient_learning import Learned, Learning
from tests.flows.comparison import toy

FEW, ALL = 2 * toy.LENGTH, 10_000


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return toy.toy_store(tmp_path_factory.mktemp("stores"))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    quick = Learning(steps=8, learning_rate=1e-2, check_every=4, patience=9)
    monkeypatch.setattr(fine_tuning, "LEARNING", quick)


def cells_of(folder, store, methods) -> tuple[Place, list[dict]]:
    chosen = toy.settings(store.folder.parent, methods=methods, fine_tune_tokens=[FEW, ALL], points=1)
    there = toy.place(folder / "comparison", store, chosen)
    (there.folder / "progress").mkdir(parents=True, exist_ok=True)
    return there, [
        cell for one in toy.all_pretrainings(chosen, store) for cell in train_and_measure(there, one)
    ]


def test_dense_models_learn_from_text_that_is_not_measured_and_a_routed_one_says_so(
    tmp_path, store, monkeypatch
):
    read = []

    def to_nothing(method, instance, learn_nL1, stop_nL1, learning):
        read.append((learn_nL1.tolist(), stop_nL1.tolist()))
        return torch.zeros_like(instance), Learned(steps=1, best_step=1, stopping_losses=())

    monkeypatch.setattr(FlatMethod, "fine_tune", to_nothing)
    there, (soup, crisp, smear) = cells_of(tmp_path, store, ["soup", "crisp", "smear"])
    of_sets = [one.choosing_nL1 for one in targets(there.sets)]
    assert [len(learn) + len(stop) for learn, stop in read] == [2, 2, 3, 3] * 2
    for (learn, stop), windows_nL1 in zip(read, [*of_sets, *of_sets] * 2, strict=True):
        assert sorted(learn + stop) == sorted(windows_nL1[: len(learn + stop)].tolist())
    for cell in (soup, crisp):
        curve = curve_of([cell])["curve"]
        assert [point["tokens"] for point in curve] == [0, 16, 24]  # all that there is
        assert curve[0]["loss"]["mean"] == pytest.approx(
            (cell["points"][-1]["losses"]["first"] + cell["points"][-1]["losses"]["second"]) / 2
        )
        # Of the model that came back: without parameters each word is as likely.
        assert [point["loss"]["mean"] for point in curve[1:]] == pytest.approx(
            [math.log(store.vocab_size)] * 2
        )
        assert len(cell["fine_tuned"]["points"][0]["sets"]["second"]["window_losses"]) == 3
    assert smear["fine_tuned"] == {"said": NOT_ONE, "points": []} and "window_losses" in smear


def test_what_was_fine_tuned_before_it_was_cut_off_is_not_again(tmp_path, store, monkeypatch):
    [contender] = contenders(toy.settings(store.folder.parent, methods=["generic"]), store, seed=0, steps=24)
    method, sets, kept = contender.method, toy.toy_sets(store), tmp_path / "kept.json"
    instances = 0.1 * torch.randn(3, method.size.num_params, generator=torch.Generator().manual_seed(0))
    whole = fine_tuned(method, instances, sets, [FEW, ALL], seed=0, kept=tmp_path / "other.json")
    fine_tune, calls = FlatMethod.fine_tune, []

    def power_cut(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return fine_tune(*arguments)

    monkeypatch.setattr(FlatMethod, "fine_tune", power_cut)
    with pytest.raises(KeyboardInterrupt):
        fine_tuned(method, instances, sets, [FEW, ALL], seed=0, kept=kept)
    assert fine_tuned(method, instances, sets, [FEW, ALL], seed=0, kept=kept) == whole
    assert len(calls) == 3 + 2
    assert fine_tuned(method, instances, sets, [ALL, 2 * ALL], seed=0, kept=kept)["points"][1]["sets"]
    assert len(calls) == 3 + 2  # as much as there is, again


def test_losses_that_are_no_numbers_are_said_and_the_cell_is_whole(tmp_path, store, monkeypatch):
    monkeypatch.setattr(fine_tuning, "LEARNING", Learning(steps=8, learning_rate=1e30, check_every=4))
    _, [cell] = cells_of(tmp_path, store, ["generic"])
    assert cell["status"] == "finished" and "learning_rate 1e+30 is too high" in cell["fine_tuned"]["said"]


def test_the_plan_counts_every_window(store):
    chosen = toy.settings(store.folder.parent, methods=["generic", "smear"])
    generic, smear = (one.method for one in contenders(chosen, store, seed=0, steps=24))
    # 8 steps of 2 windows, three looks at one that says when to stop, and three that are measured: for two sets.
    assert windows_read(generic, toy.toy_sets(store), [FEW]) == 2 * (3 * 8 * 2 + 3 + 3)
    assert windows_read(generic, toy.toy_sets(store), [ALL, 2 * ALL]) == 2 * (3 * 8 * 3 + 3 + 3)
    assert windows_read(smear, toy.toy_sets(store), [FEW]) == windows_read(generic, [], [FEW]) == 0


def row(method, *losses, said=""):
    curve = [
        {"tokens": tokens, "loss": {"mean": loss, "sd": None}}
        for tokens, loss in zip((0, 100, 1000), losses, strict=False)
    ]
    return {"method": method, "fine_tuning": {"said": said, "curve": curve}}


def test_the_words_say_how_much_text_generic_needs():
    soup, routed = row("soup", 3.0, 2.9, 2.8), row("smear", said=NOT_ONE)
    best, reached, smear = in_words([row("generic", 3.3, 3.0, 2.7), soup, routed])
    assert (
        best.startswith("After fine-tuning on 1,000 tokens of each set")
        and "generic (2.700; 3.300 before)" in best
    )
    assert "generic reaches the loss of the soup before its fine-tuning (3.000) with 100 tokens" in reached
    assert smear == "smear has no losses after fine-tuning: it is not one model."
    assert in_words([row("soup", 3.0, 2.9), row("generic", said="its loss is not finite.")])[-1] == (
        "generic has no losses after fine-tuning: its loss is not finite."
    )
    assert "does not reach" in in_words([row("generic", 3.3, 3.2, 3.1), soup])[1]
    assert in_words([routed]) == in_words([{"method": "pareto"}]) == []


def test_learning_stops_by_documents_that_it_does_not_learn_from(store, tmp_path, monkeypatch):
    [first, *others] = toy.toy_sets(store)
    documents = [0, 0, 1]
    sides = []

    def fine_tune(method, instance, windows_nL1, stopping_mL1, learning):
        sides.append((windows_nL1, stopping_mL1))
        return instance, Learned(steps=1, best_step=0, stopping_losses=(1.0,))

    monkeypatch.setattr(FlatMethod, "fine_tune", fine_tune)
    chosen = toy.settings(store.folder.parent, methods=["generic"])
    [contender] = contenders(chosen, store, seed=0, steps=24)
    model = contender.method.begin(contender.method.runs()[0]).instantiate(first.weights_K[None])
    sets = [replace(first, document_n=documents), *others]
    fine_tuned(contender.method, list(model), sets, [ALL], seed=0, kept=tmp_path / "kept.json")
    learned, stopping = sides[0]
    assert learned.tolist() == first.choosing_nL1[:2].tolist()
    assert stopping.tolist() == first.choosing_nL1[2:].tolist()


def test_the_windows_are_of_as_many_documents_as_there_are(store):
    documents = [5, 5, 5, 5, 5, 5, 7, 8, 8]
    one = replace(toy.toy_sets(store)[0], choosing_nL1=torch.zeros(9, 9), document_n=documents)
    two = _rows(one, 0)
    assert two == _rows(one, 16) and len({documents[row] for row in two}) == len(two) == 2
    rows = _rows(one, 5 * 8)
    assert {one.document_n[row] for row in rows} == {5, 7, 8} and sum(row >= 6 for row in rows) == 3
    assert _rows(one, 1000) == list(range(9))
