"""The comparison's job on a real store: from texts to the page; what it refuses; what it skips."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from flows.cli import main as cli
from flows.comparison import read_sets
from flows.comparison.after_training import multiple_choice
from flows.comparison.sets import load_sets
from flows.jobs import compare_methods as job
from flows.prefect_flows import comparison_artifacts
from flows.settings import CompareMethods
from pipeline.remote.store import open_store
from storage_schema.layout import store_folder
from storage_schema.manifest import StoreError
from tests.flows.built_store import write_corpus

LABELS = ["soup", "soup-blended", "soup-refined", "generic"]


@pytest.fixture(scope="module")
def chosen(built, settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    texts = write_corpus(folder / "pets.jsonl", 90, seed=7)
    return CompareMethods(
        name=str(folder / "which"), store=settings.store, methods=["soup", "generic"], seeds=[3, 4], tokens=20 * 4 * 16,
        batch_size=4, sequence_length=16, mixtures_per_step=2, support_size=2, num_experts=2, held_out=False,
        texts={"pets": str(texts)}, evaluation_passages=6, points=2, fine_tune_tokens=[64, 32],
    )  # fmt: skip


@pytest.fixture(scope="module")
def compared(chosen):
    return job.run(chosen)


def test_it_ends_with_a_page(compared, chosen):
    assert (compared["cells"], compared["finished"]) == (4, 4)
    report = json.loads(open(f"{compared['folder']}/results.json").read())
    assert [one["name"] for one in report["sets"]] == ["pets", "generic mixture"]
    assert [(row["method"], row["seeds"]) for row in report["rows"]] == [(label, 2) for label in LABELS]
    assert all(0 < row["by_set"]["pets"]["mean"] < 8 for row in report["rows"])
    tuned = [cell for cell in report["cells"] if "fine_tuned" in cell]
    assert [len(cell["fine_tuned"]["points"]) for cell in tuned] == [2] * 4 and report["fine_tuning"]
    assert len(report["cells"][0]["window_losses"]["pets"]) > 1
    assert isinstance(report["sets"][0]["notes"], list)
    verdicts = {one["figure"]: one["said"] for one in report["figures"]}
    assert len(verdicts) == 9 and "not both measured with one model for several sets" in verdicts["Figure 10"]
    assert compared["answer"][0].startswith("On 1 far set") and compared["page"].endswith("comparison.html")


def test_fine_tuning_knows_the_documents_of_the_windows(compared, chosen):
    store = open_store(str(store_folder(chosen.store)))
    kept = load_sets(Path(compared["folder"]) / "sets")
    pets, generic = read_sets.with_documents(chosen.of_size(), store, kept)
    assert generic.document_n is None and len(pets.document_n) == len(pets.choosing_nL1)
    assert len(set(pets.document_n)) > 5 and pets.document_n == sorted(pets.document_n)
    for manifest in Path(compared["folder"]).glob("cells/*/manifest.json"):
        assert json.loads(manifest.read_text())["configuration"]["stopping"] == "documents"


def test_the_prefect_run_shows_the_answer_and_links_the_page(compared, chosen, monkeypatch):
    made = {}
    for kind in ("markdown", "table", "link"):
        monkeypatch.setattr(
            comparison_artifacts, f"create_{kind}_artifact", lambda body, key, **_: made.update({key: body})
        )
    comparison_artifacts.publish_comparison(chosen)
    assert compared["answer"][0] in made["comparison-which"]
    assert [row["method"] for row in made["comparison-which-table"]] == LABELS
    assert made["comparison-which-page"] == f"file://{compared['page']}"


@pytest.mark.parametrize(
    ("typed", "given"),
    [
        ([], {}),
        (
            ["--methods", "soup", "--methods", "crisp", "--seeds", "3"],
            {"methods": ["soup", "crisp"], "seeds": [3]},
        ),
        (["--tokens", "500", "--name", "which"], {"tokens": 500, "name": "which"}),
    ],
)
def test_the_command_gives_what_was_typed(monkeypatch, capsys, typed, given):
    asked = []
    monkeypatch.setattr(job, "run", lambda settings: asked.append(settings) or {"page": "/there.html"})
    assert cli.main(["compare", "mine", *typed]) == 0
    assert asked[0].model_dump(exclude_unset=True) == {"store": "mine", **given}
    assert capsys.readouterr().out == "/there.html\n"


def test_the_same_again_trains_nothing_and_one_more_method_only_itself(compared, chosen, capfd):
    assert job.run(chosen)["answer"] == compared["answer"]
    assert "4 of 4 trainings are finished" in capfd.readouterr().out
    more = job.run(chosen.model_copy(update={"methods": ["soup", "generic", "crisp"]}))
    assert "4 of 6 trainings are finished" in capfd.readouterr().out and more["finished"] == 6


def test_questions_are_asked_after_training_and_nothing_is_trained_on_them(
    compared, chosen, tmp_path, monkeypatch, capfd
):
    examples = [
        {"input": f"question {n}", "target_scores": {"yes": n % 2, "no": 1 - n % 2}} for n in range(5)
    ]
    (tmp_path / "benchmark_tasks/one").mkdir(parents=True)
    (tmp_path / "benchmark_tasks/one/task.json").write_text(json.dumps({"examples": examples}))
    asking = chosen.model_copy(
        update={"multiple_choice": str(tmp_path / "benchmark_tasks"), "multiple_choice_tasks": ["one", "one"]}
    )
    monkeypatch.setattr(multiple_choice, "is_there", lambda: False)
    assert job.run(asking)["answer"] == compared["answer"]
    said = capfd.readouterr().out
    assert "4 of 4 trainings are finished" in said and "the extra `exports` installs" in said
    given = []

    def all_answers(place, of, trained, cells):
        given.append(of)
        of_task = {"one": {"right": [1.0, 0.0], "margin": [0.2, -0.1]}}
        return [{"method": cell["method"], "seed": cell["seed"], "by_task": of_task} for cell in cells]

    monkeypatch.setattr(multiple_choice, "is_there", lambda: True)
    monkeypatch.setattr(multiple_choice, "all_answers", all_answers)
    assert job.run(asking)["answer"] == compared["answer"]
    assert "4 of 4 trainings are finished" in capfd.readouterr().out
    [of] = given
    [task] = of.tasks
    assert task.questions == ["question 1", "question 3"] and task.right == [0, 0]
    assert of.weights_TK.shape[0] == 1 and of.weights_TK.sum().item() == pytest.approx(1)
    report = json.loads(Path(compared["folder"], "results.json").read_text())
    assert report["multiple_choice"]["rows"][0]["by_task"]["one"]["right"]["mean"] == 0.5
    assert "ARC and MMLU" in Path(compared["page"]).read_text("utf-8")
    (tmp_path / "benchmark_tasks/one/task.json").write_text(
        json.dumps({"examples": [one | {"target_scores": {"y " * 40: 1, "n": 0}} for one in examples]})
    )
    with pytest.raises(ValueError, match=r"a choice of one has \d+ tokens, and the models read 16"):
        job.run(asking)


def test_mixtures_are_trained_beside_what_is_there_and_ranked(compared, chosen, capfd):
    trained = [*Path(compared["folder"]).glob("trained/seed-3-*/*")]
    trained_at = {file: file.stat().st_mtime_ns for file in trained}
    more = job.run(chosen.model_copy(update={"mixtures": 4, "seeds": [3]}))
    printed = capfd.readouterr().out
    # The generic model is skipped; the soup is measured on the mixtures, and not trained again.
    assert "2 of 6 trainings are finished" in printed and "- a model of a mixture: 1 run" in printed
    assert "5 cells in 4 trainings" in printed
    assert "- soup: trained already; measured in" in printed
    assert trained_at and {file: file.stat().st_mtime_ns for file in trained} == trained_at
    assert "random mixtures" in more["answer"][-1] and more["finished"] == 6
    report = json.loads(open(f"{more['folder']}/results.json").read())
    assert [row["method"] for row in report["rows"]] == LABELS
    assert len(report["surface"]["trained"][0]) == 4 and report["by_number"]["few-texts"][
        "curves"
    ].keys() == {"soup"}
    for table in ("ratios.csv", "metrics.csv"):
        assert len(open(f"{more['folder']}/surface/soup/{table}").readlines()) == 5
    with pytest.raises(ValueError, match="mixtures is 2: the ranks of so few"):
        job.run(chosen.model_copy(update={"mixtures": 2}))


def test_another_comparison_in_the_same_folder_is_refused(compared, chosen):
    with pytest.raises(StoreError, match="points was 2, now 3"):
        job.run(chosen.model_copy(update={"points": 3}))


def test_a_method_that_diverges_at_once_is_said_in_its_row(chosen, tmp_path):
    """Its rate is timed first, which must not end the comparison."""
    wild = {"generic:wild": {"learning_rate": 1e30, "warmup_steps": 0}}
    update = {"methods": ["generic", *wild], "options": wild, "name": str(tmp_path / "wild"), "seeds": [0, 0]}
    found = job.run(chosen.model_copy(update=update))
    assert (found["cells"], found["finished"]) == (2, 2 - 1)
    report = json.loads((tmp_path / "wild/results.json").read_text())
    assert [(cell["method"], cell["status"]) for cell in report["cells"]] == [
        ("generic", "finished"), ("generic:wild", "diverged")
    ]  # fmt: skip


def test_hours_are_measured_out_in_steps_and_kept(compared, chosen, tmp_path, capfd):
    update = {
        "tokens": None,
        "hours": 0.02,
        "name": str(tmp_path / "timed"),
        "seeds": [0],
        "methods": ["generic"],
    }
    timed = chosen.model_copy(update=update)
    job.run(timed)
    steps = json.loads((tmp_path / "timed/run.json").read_text())["steps"]
    assert 10 <= steps <= 3600 and f"{steps:,} steps and" in capfd.readouterr().out
    job.run(timed)
    assert json.loads((tmp_path / "timed/run.json").read_text())["steps"] == steps


def test_the_texts_of_a_set_may_lie_in_another_field(built, chosen, tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text("".join(f'{{"content": "kitten {n}"}}\n' for n in range(9)))
    read = []

    class Enough(Exception):
        pass

    def embed_texts(embedder, texts):
        read.extend(texts)
        raise Enough

    monkeypatch.setattr(read_sets, "embed_texts", embed_texts)
    update = {"texts": {"a": str(tmp_path / "a.jsonl")}, "text_field": "content", "name": str(tmp_path / "c")}
    with pytest.raises(Enough):
        job.run(chosen.model_copy(update=update))
    assert read and all(text.startswith("kitten ") for text in read)


def test_a_store_without_held_out_sets_is_refused(built, chosen, tmp_path):
    update = {"held_out": True, "texts": {}, "name": str(tmp_path / "none")}
    with pytest.raises(ValueError, match="no held-out source of .* Hold out more"):
        job.run(chosen.model_copy(update=update))
    with pytest.raises(ValueError, match="there is no set to measure on"):
        job.run(chosen.model_copy(update=update | {"held_out": False}))


def test_what_is_refused_leaves_unfinished_trainings_as_they_are(compared, chosen, monkeypatch):
    """Looking for trainings of other points removed those that were cut off, before the run was refused."""
    looked = []
    monkeypatch.setattr(job.plan, "planned", lambda *asked: looked.append(asked))
    with pytest.raises(StoreError, match="points was 2, now 3"):
        job.run(chosen.model_copy(update={"points": 3}))
    assert not looked


def test_a_preset_that_is_another_one_by_now_is_refused(compared, chosen, monkeypatch):
    real = job.preset
    monkeypatch.setattr(job, "preset", lambda name: replace(real(name), num_experts=5))
    with pytest.raises(StoreError, match="preset.num_experts was 16, now 5"):
        job.run(chosen)
