"""What is published of a finished run, from files made by the tests."""

from __future__ import annotations

import base64
import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from flows.prefect_flows import result_artifacts as artifacts
from flows.reporting.artifact_text import artifact_key, describe, percent_of
from flows.settings import Pretrain, Specialize
from storage_schema.layout import run_folder, soup_folder
from storage_schema.stage import open_stage

PNG = re.compile(r"!\[[^]]*\]\(data:image/png;base64,([A-Za-z0-9+/=]+)\)")


def pictures(markdown: str) -> list[bytes]:
    return [base64.b64decode(found) for found in PNG.findall(markdown)]


@pytest.mark.parametrize(
    ("progress", "text", "percent"),
    [
        ({"stage": "embed: all", "done": 1200, "total": 26000, "unit": "passages"}, "1,200 of 26,000", 4.6),
        ({"stage": "x", "done": 7, "total": 0, "unit": "files of text"}, "x: 7 files of text", 0.0),
        ({"stage": "x", "done": 9, "total": 3, "unit": "steps"}, "9 of 3", 100),
    ],
)
def test_progress_is_said_in_words(progress, text, percent):
    assert text in describe(progress)
    assert percent_of(progress) == percent


@pytest.mark.parametrize("words", [("build-domains", "Embed passages (GPU)"), ("a", "_b_"), ("Ä/x.y", "2")])
def test_keys_are_what_prefect_accepts(words):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", artifact_key(*words))


def test_a_flow_publishes_without_torch():
    """Its process is started for each run, and importing torch takes seconds."""
    modules = ", ".join(f"flows.prefect_flows.{kind}_artifacts" for kind in ("domain", "result"))
    code = f"import {modules}, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_the_soups_card_says_how_to_resume(tmp_path, monkeypatch):
    monkeypatch.setenv("SOE_HOME", str(tmp_path))
    stage = open_stage(soup_folder("mine"), kind="soup", configuration={}, inputs={"domains": "d" * 64})
    digest = stage.finish({}).digest
    run_folder("mine").mkdir(parents=True)
    (run_folder("mine") / "summary.json").write_text(json.dumps({"tokens": 4096000, "train_seconds": 12.5}))
    # A run that was cut off and resumed has some steps twice in its log.
    log = [{"step": step, "loss": 9.0 / step} for step in (1, 2, 3, 2, 3, 4)]
    (run_folder("mine") / "log.jsonl").write_text("\n".join(map(json.dumps, log)) + "\n")
    card = artifacts.soup_card(Pretrain(name="mine", steps=4))
    assert digest in card and "d" * 64 in card and "4,096,000" in card and len(pictures(card)) == 1
    [command] = re.findall(r"```\n(prefect .*)\n```", card)
    assert resumed(command) == Pretrain(name="mine", steps=4)
    shutil.rmtree(run_folder("mine"))  # what a finished soup outlives
    card = artifacts.soup_card(Pretrain(name="mine", steps=4))
    assert digest in card and not pictures(card)
    # In the command that a shell reads, whatever the settings hold.
    apostrophe = Pretrain(name="mine", store="/data/it's mine; $HOME")
    [command] = re.findall(r"```\n(prefect .*)\n```", artifacts.soup_card(apostrophe))
    assert resumed(command) == apostrophe


def test_the_card_of_a_run_shows_whether_its_bank_specialises(tmp_path, monkeypatch):
    """A picture of the steps after which it was measured, and the newest value of each number."""
    monkeypatch.setenv("SOE_HOME", str(tmp_path))
    folder = run_folder("mine")
    folder.mkdir(parents=True)
    assert artifacts.training_card(Pretrain(name="mine")) is None
    log = [{"step": step, "loss": 9.0 / step} for step in (10, 20)]
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, log)) + "\n")
    assert len(pictures(artifacts.training_card(Pretrain(name="mine")))) == 1
    log[0] |= {"coefficient_spread": 0.31, "instance_spread": 0.085, "expert_cosine": 0.6}
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, log)) + "\n")
    card = artifacts.training_card(Pretrain(name="mine"))
    assert len(pictures(card)) == 2 and "step 20" in card
    assert "| instance spread | 0.085 |" in card and "| loss | 0.45 |" in card
    log[1] |= {"own_instance_loss": 0.4, "generic_instance_loss": 0.5}
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, log)) + "\n")
    card = artifacts.training_card(Pretrain(name="mine"))
    assert len(pictures(card)) == 3 and "| own instance loss | 0.4 |" in card


def resumed(command: str) -> Pretrain:
    words = shlex.split(command)
    assert words[:-1] == ["prefect", "deployment", "run", "pretrain-soe", "--params"]
    return Pretrain(**json.loads(words[-1])["config"])


def test_losses_of_other_specialists_are_not_published(tmp_path, monkeypatch):
    """evaluation.json may be an earlier run's, and the folder may hold others' specialists."""
    published = {}
    monkeypatch.setattr(
        artifacts, "create_table_artifact", lambda rows, **rest: published.update({rest["key"]: rows})
    )
    folder = tmp_path / "mine"
    (folder / "older").mkdir(parents=True)
    (folder / "older/specialist.json").write_text("{}")
    old = {"specialist_sets": [{"name": "older", "soup_loss": 1.0}]}
    (folder / "evaluation.json").write_text(json.dumps(old))
    report = {
        "specialists": ["notes"], "gains": {"notes": "No gain."}, "warnings": {}, "notes": {"notes": ["2 of 9."]}
    }  # fmt: skip
    (folder / "made.json").write_text(json.dumps({"report": report}))
    artifacts.publish_specialists(Specialize(output=str(folder)))
    assert published == {
        "specialists-mine": [
            {"specialist": "notes", "gain": "No gain.", "folder": str(folder / "notes"), "texts": "2 of 9."}
        ],
    }


def test_the_losses_card_draws_only_what_was_compared():
    row = {"name": "a", "soup_loss": 4.0, "unseen_source": True}
    assert not pictures(artifacts.losses_card({"specialist_sets": [row]}))
    assert pictures(artifacts.losses_card({"specialist_sets": [{**row, "generic_loss": 4.5}]}))


def test_the_losses_card_says_what_each_specialist_gains():
    row = {"name": "a", "soup_loss": 4.0, "unseen_source": True}
    card = artifacts.losses_card(
        {"specialist_sets": [row], "gains": {"a": "No gain: use the generic model."}}
    )
    assert card.endswith("- **a**: No gain: use the generic model.")


def test_the_losses_card_says_how_texts_were_taken():
    row = {"name": "a", "soup_loss": 4.0, "unseen_source": True}
    card = artifacts.losses_card({"specialist_sets": [row], "notes": {"a": ["9 of 20 passages were taken."]}})
    assert card.endswith("- **a**: 9 of 20 passages were taken.")
