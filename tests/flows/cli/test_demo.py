"""The demonstration: its commands are ones a user can type, and its result says what was measured."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
from rich.console import Console

from flows.cli import demo
from flows.cli import demo_report as comparison
from flows.settings import BuildDomains, Pretrain, Specialize
from storage_schema.errors import UserError
from storage_schema.layout import run_folder, specialist_folder, store_folder
from storage_schema.stage import open_stage

SETTINGS = {"build-domains": BuildDomains, "pretrain-soe": Pretrain, "specialize": Specialize}


def measured(soup_losses=(4.0, 5.0), generic_tokens=1000) -> None:
    """Leave the files of four finished runs under SOE_HOME."""
    rows = [
        {"name": f"set{i}", "generic_loss": 4.6, "soup_loss": loss, "unseen_source": i == 0, "passages": 100}
        for i, loss in enumerate(soup_losses)
    ]
    mixture = {"generic_loss": 4.2, "soup_loss": 4.3, "passages": 800}
    for folder, name, body in (
        (specialist_folder("out"), "evaluation.json", {"specialist_sets": rows, "generic_mixture": mixture}),
        (run_folder("soup"), "summary.json", {"tokens": 1000, "train_seconds": 9.0, "steps": 5}),
        (run_folder("twin"), "summary.json", {"tokens": generic_tokens, "train_seconds": 7.0, "steps": 5}),
    ):
        folder.mkdir(parents=True)
        (folder / name).write_text(json.dumps(body))
    for kind in comparison.STAGES:
        open_stage(store_folder("store") / kind, kind=kind, configuration={}, inputs={}).finish({})


def collect():
    return comparison.collect(store="store", soup="soup", generic="twin", specialists="out")


def test_its_commands_are_valid_deployment_runs():
    chosen = demo.steps()
    assert [step.deployment for step in chosen] == [
        "build-domains",
        "pretrain-soe",
        "pretrain-soe",
        "specialize",
    ]
    for step in chosen:
        assert step.command[:4] == ["prefect", "deployment", "run", step.deployment]
        SETTINGS[step.deployment](**json.loads(step.command[-1])["config"])


def test_its_soup_reads_what_its_twin_reads():
    """On the average: the twin reads each domain by its size, and so must the soup's mixtures."""
    soup, twin = (Pretrain(**step.config) for step in demo.steps() if step.deployment == "pretrain-soe")
    assert (soup.method, twin.method) == ("soup", "generic")
    assert soup.meta_distribution == "mixed" and all(law.by_size for law in soup.laws)
    same = {"steps", "store", "preset", "batch_size", "sequence_length", "backbone", "cores_per_worker"}
    assert soup.model_dump(include=same) == twin.model_dump(include=same)


class Order:
    """Notes in which order commands are typed and runs followed."""

    def __init__(self, monkeypatch):
        self.seen = []
        monkeypatch.setattr(demo, "_type", lambda step, console: self.seen.append("type") or "id")
        monkeypatch.setattr(demo, "_follow", lambda *arguments: self.seen.append("follow"))
        demo._run_all(demo.steps(), api=None, console=Console())


def test_each_step_waits_for_the_one_before_unless_all_were_finished(monkeypatch, tmp_path):
    monkeypatch.setenv("SOE_HOME", str(tmp_path))
    assert Order(monkeypatch).seen == ["type", "follow"] * 4
    names = {"STORE": "store", "SOUP": "soup", "GENERIC": "twin", "SPECIALISTS": "out"}
    for name, value in names.items():
        monkeypatch.setattr(demo, name, value)
    measured()
    assert Order(monkeypatch).seen == ["type", "follow"] * 4
    comparison.write(collect())
    assert Order(monkeypatch).seen == ["type"] * 4 + ["follow"] * 4
    (specialist_folder("out") / "evaluation.json").unlink()
    assert Order(monkeypatch).seen == ["type", "follow"] * 4


def test_a_demonstration_with_other_settings_is_not_gone_on_with(monkeypatch, tmp_path):
    monkeypatch.setenv("SOE_HOME", str(tmp_path))
    demo._refuse_another()  # there is none
    measured()
    comparison.write(collect() | {demo.ASKED: demo._asked()})
    demo._refuse_another()
    for earlier in ({}, {demo.ASKED: demo._asked() | {"preset": {"steps": 1600}}}):
        comparison.write(collect() | earlier)
        with pytest.raises(demo.StepError, match="other settings.*SOE_HOME.*soups/demo-soup.* and demo"):
            demo._refuse_another()


def test_the_seconds_are_of_the_command_that_finished_it(monkeypatch, tmp_path):
    monkeypatch.setenv("SOE_HOME", str(tmp_path))
    monkeypatch.setattr(demo, "time", SimpleNamespace(monotonic=lambda: 1060.24))
    assert demo._seconds(100.0) == 960.2
    measured()
    comparison.write(collect() | {demo.SECONDS: 960.2})
    assert demo._seconds(1054.0) == 960.2
    comparison.write(collect())  # of an older release
    assert demo._seconds(1054.0) is None


def test_the_summary_has_these_keys_and_no_others(monkeypatch, tmp_path):
    monkeypatch.setenv("SOE_HOME", str(tmp_path))
    measured()
    folder = comparison.write(collect())
    summary = json.loads((folder / "summary.json").read_text())
    assert folder == tmp_path / "demo" and (folder / "plot.png").stat().st_size > 1000
    stage_seconds = summary.pop("stage_seconds")
    assert set(stage_seconds) == {"passages", "tokenizer", "embeddings", "domains"}
    assert summary == {
        "specialist_sets": [
            {"name": "set0", "generic_loss": 4.6, "soup_loss": 4.0, "unseen_source": True},
            {"name": "set1", "generic_loss": 4.6, "soup_loss": 5.0, "unseen_source": False},
        ],
        "mean": {"generic_loss": 4.6, "soup_loss": 4.5},
        "seen": {"generic_loss": 4.6, "soup_loss": 5.0},
        "unseen": {"generic_loss": 4.6, "soup_loss": 4.0},
        "generic_mixture": {"generic_loss": 4.2, "soup_loss": 4.3},
        "tokens": 1000,
        "train_seconds": {"generic": 7.0, "soup": 9.0},
    }


def test_a_run_whose_folder_was_removed_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("SOE_HOME", str(tmp_path))
    measured()
    (run_folder("twin") / "summary.json").unlink()
    with pytest.raises(UserError, match="runs/twin has no summary.json.*Remove .*soups/twin too"):
        collect()


def test_where_prefect_commands_go_elsewhere_the_stack_is_asked_for_again(monkeypatch):
    """Another stack of the same user may have taken the profile; a demonstration must not run on it."""
    known, asked = SimpleNamespace(api=SimpleNamespace(url="http://127.0.0.1:4200/api")), []
    monkeypatch.setattr(demo.stack_state, "load", lambda: known)
    monkeypatch.setattr(demo.stack_health, "is_up", lambda stack: True)
    monkeypatch.setattr(demo.prefect_profile, "is_active", lambda url: bool(asked))
    monkeypatch.setattr(demo.stack_status, "up", lambda: asked.append("up"))

    def refuse():
        raise demo.StepError("far enough")

    monkeypatch.setattr(demo, "_refuse_another", refuse)
    assert demo.main() == demo.main() == 1
    assert asked == ["up"]


def test_what_is_gained_over_the_soups_own_generic_instance_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("SOE_HOME", str(tmp_path))
    measured()
    assert comparison.gained(collect()) is None  # of an older release
    file = specialist_folder("out") / "evaluation.json"
    body = json.loads(file.read_text())
    for row, low, share in zip(body["specialist_sets"], (0.1, -0.1), (0.5, 0.0), strict=True):
        row |= {"soup_generic_instance_loss": row["soup_loss"] + low / 0.1, "gain_low": low, "share": share}
    file.write_text(json.dumps(body))
    assert comparison.gained(collect()) == (
        "Over the soup's own generic instance they gain +0.000 on the mean, surely on 1 of 2 sets; on the rest the "
        "generic model may do as well (1 were made as it)."
    )
    body["specialist_sets"][1]["refining_steps"] = 5
    file.write_text(json.dumps(body))
    assert "(0 were made as it)" in comparison.gained(collect())


@pytest.mark.parametrize("missing", ["generic_loss", "generic_mixture"])
def test_an_evaluation_of_other_specialists_is_no_demonstration(monkeypatch, tmp_path, missing):
    """As `specialize` leaves it without compare_with, and without held_out_of."""
    monkeypatch.setenv("SOE_HOME", str(tmp_path))
    measured()
    file = specialist_folder("out") / "evaluation.json"
    body = json.loads(file.read_text())
    for of_twin in (body, *body["specialist_sets"]):
        of_twin.pop(missing, None)
    file.write_text(json.dumps(body))
    with pytest.raises(
        UserError, match=f"out/evaluation.json has no '{missing}'.* else remove .*out and run"
    ):
        collect()


def test_unequal_tokens_do_not_compare(monkeypatch, tmp_path):
    monkeypatch.setenv("SOE_HOME", str(tmp_path))
    measured(generic_tokens=999)
    with pytest.raises(ValueError, match="1000 tokens.*999"):
        collect()


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ((4.0, 5.0), "was worth it.*LOWER.*4.500 against 4.600.*lower on 1 of 2"),
        ((4.8, 4.8), "was not worth it.*HIGHER.*lower on 0 of 2"),
        ((4.6, 4.6), "was not worth it.*the same as"),
    ],
)
def test_the_verdict_is_plain(monkeypatch, tmp_path, losses, words):
    monkeypatch.setenv("SOE_HOME", str(tmp_path))
    measured(soup_losses=losses)
    assert re.search(words, comparison.verdict(collect()))


def test_the_table_shows_every_set_and_the_mean(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("SOE_HOME", str(tmp_path))
    measured()
    comparison.show(collect(), Console(width=120, highlight=False))
    said = capsys.readouterr().out
    assert "set0" in said and "-0.600" in said and "+0.400" in said and "mean of the sets" in said
    assert re.search(r"mean of seen sources +seen +4.600 +5.000 +\+0.400", said)
    assert re.search(r"mean of unseen sources +unseen +4.600 +4.000 +-0.600", said)
    assert "1,000 tokens" in said and "LOWER" in said
