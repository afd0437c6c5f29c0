"""Every method in a comparison on a toy store: trained, kept, loaded again, measured, and what it is said to cost."""

from __future__ import annotations

import json
import shutil

import pytest

from flows.comparison.cells import train_and_measure
from flows.comparison.measuring import FINISHED
from flows.comparison.place import RESULT
from flows.comparison.training import Training
from soe_model.methods import METHODS
from tests.extras import needs
from tests.flows.comparison import toy

OF_PEFT = "merged-ties", "merged-dare", "phatgoose", "arrow"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return toy.toy_store(tmp_path_factory.mktemp("stores"))


@pytest.mark.parametrize("label", METHODS)
def test_what_is_kept_of_a_training_is_the_method_that_was_trained(tmp_path, store, monkeypatch, label):
    if label in OF_PEFT:
        needs("peft", extra="exports")
    options = {"lora_learning_rate": 0.1, "gate_steps": 8} if label in ("phatgoose", "arrow") else {}
    chosen = toy.settings(
        store.folder.parent, methods=[label], options={label: options}, tokens=64 * 4 * toy.LENGTH
    )
    there = toy.place(tmp_path / "comparison", store, chosen)
    (there.folder / "progress").mkdir(parents=True)
    [pretraining] = toy.all_pretrainings(chosen, store, steps=64)
    [cell] = train_and_measure(there, pretraining)
    assert (cell["status"], cell["said"]) == (FINISHED, "")
    assert set(cell["window_losses"]) >= {"first", "second"}
    assert cell["seconds_per_token"] > 0 and cell["seconds_to_specialist"] >= 0
    [there_now] = (there.folder / "cells").glob(f"*/{RESULT}")
    assert json.loads(there_now.read_text())["window_losses"] == cell["window_losses"]
    shutil.rmtree(there_now.parent)
    monkeypatch.setattr(Training, "_train", lambda *a: pytest.fail("it was trained again"))
    [again] = train_and_measure(there, pretraining)
    assert again["window_losses"] == cell["window_losses"]
    assert again["points"] == cell["points"]
