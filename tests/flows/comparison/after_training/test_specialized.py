"""A soup's specialists in a comparison, as `specialize` makes them: their losses, and when they are refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file

from flows.comparison.after_training import specialized
from flows.comparison.contenders import contenders
from flows.comparison.pretrainings import pretrainings
from flows.comparison.read_sets import embedder_of, read_again
from flows.comparison.sets import load_sets
from flows.jobs import compare_methods as job
from flows.settings import CompareMethods
from flows.specialists.losses import LossMeter
from pipeline.remote.store import open_store
from soe_model.files.write_soup import soup_of_trainer
from storage_schema.layout import store_folder
from tests.flows.built_store import write_corpus


@pytest.fixture(scope="module")
def chosen(built, settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("specialized")
    texts = write_corpus(folder / "pets.jsonl", 150, seed=7)
    texts.write_text("".join(line for line in open(texts) if '"pets"' in line))
    return CompareMethods(
        name=str(folder / "which"), store=settings.store, methods=["soup", "soup:s1"], seeds=[3], tokens=60 * 4 * 16,
        options={"soup:s1": {"support_size": 1}}, batch_size=4, sequence_length=16, mixtures_per_step=2,
        support_size=2, num_experts=2, held_out=False, texts={"pets": str(texts)}, evaluation_passages=6, points=2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def compared(chosen):
    return job.run(chosen)


def results(chosen):
    report = json.loads((Path(chosen.name) / "results.json").read_text())
    return {(cell["method"], cell["seed"]): cell for cell in report["cells"]}


def test_the_blended_models_lie_so_far_on_the_way_as_their_share_says(compared, chosen):
    folder, cells = Path(chosen.name), results(chosen)
    assert [label for label, _ in cells] == ["soup", "soup-blended", "soup-refined", "soup:s1"]
    pets, generic = load_sets(folder / "sets")
    share = cells["soup-blended", 3]["chosen"]["pets"]["blend"]["share"]
    store = open_store(str(store_folder(chosen.store)))
    [one] = contenders(
        chosen.model_copy(update={"methods": ["soup"], "options": {}}).of_size(), store, seed=3, steps=60
    )
    [trained] = pretrainings([one], pets.weights_K[None], seed=3, store=store.digest)
    learner = one.method.begin(*trained.runs)
    learner.load_state_dict(load_file(folder / "trained" / trained.name / "soup-state.safetensors"))
    weights_K = share * pets.weights_K + (1 - share) * generic.weights_K
    [model_P] = one.method.instantiate([learner], weights_K[None])
    expected = one.method.loss(model_P, pets.evaluation_nL1).tolist()
    assert share > 0
    assert cells["soup-blended", 3]["window_losses"]["pets"] == pytest.approx(expected, abs=1e-5)


def test_the_refined_models_say_their_steps_and_take_longer(compared, chosen):
    cells = results(chosen)
    soup, blended, refined = (cells[label, 3] for label in ("soup", "soup-blended", "soup-refined"))
    assert {"blend", "refined"} <= refined["chosen"]["pets"].keys()
    losses, of_soup = (cell["points"][-1]["losses"] for cell in (refined, soup))
    assert losses["generic mixture"] == of_soup["generic mixture"]
    seconds = [cell["seconds_to_specialist"] for cell in (soup, blended, refined)]
    assert seconds == sorted(seconds)


def test_measuring_is_no_part_of_the_time_to_a_specialist(compared, chosen, tmp_path, monkeypatch):
    settings = chosen.of_size()
    store = open_store(str(store_folder(chosen.store)))
    [pets, _] = load_sets(Path(chosen.name) / "sets")
    [one] = read_again(settings, store, [pets])
    alone = settings.model_copy(update={"methods": ["soup"], "options": {}})
    [contender] = contenders(alone, store, seed=3, steps=60)
    trainer = contender.method.begin(*contender.method.runs())
    tokenizer = store.folder.parent / "tokenizer/tokenizer.json"
    windows_K = store.windows_K(trainer.training.sequence_length)
    soup = soup_of_trainer(
        tmp_path / "soup", trainer, tree=store.tree, tokenizer=tokenizer, windows_K=windows_K
    )
    texts = specialized.Texts(
        sets=[one], assignments=[specialized._placed(store, embedder_of(store), one.texts)]
    )
    real, clock = LossMeter.losses_of_some, [0]

    def slowly(meter, coefficients_WN, windows, measured, **how):
        clock[0] += 100 if set(windows) == {"pets"} else 1
        return real(meter, coefficients_WN, windows, measured, **how)

    monkeypatch.setattr(LossMeter, "losses_of_some", slowly)
    monkeypatch.setattr(specialized, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    found = specialized._measured(soup, store, texts, [pets])
    # Of choosing the share, and of choosing the steps; the ends were measured by a hundred each.
    assert (found["blended"]["seconds"], found["refined"]["seconds"], clock[0]) == (1, 2, 202)


def test_texts_that_are_others_by_now_are_said_in_the_row(compared, chosen):
    one_more = chosen.model_copy(update={"seeds": [3, 4]})
    path = Path(chosen.texts["pets"])
    before = path.read_text()
    path.write_text(before.replace("a", "o"))
    assert job.run(chosen)["answer"] == compared["answer"]  # all is there: they are not read
    assert job.run(one_more)["finished"] == 4
    cells = results(chosen)
    assert cells["soup-blended", 3]["status"] == "finished" and cells["soup-blended", 4]["status"] == "failed"
    assert "'pets' are no longer those that the comparison began with" in cells["soup-blended", 4]["said"]
    path.write_text(before)
    job.run(one_more)
    assert results(chosen)["soup-refined", 4]["status"] == "finished"
