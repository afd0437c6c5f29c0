"""Multiple choice: BIG-bench's files, answers through lm-evaluation-harness, and what is said of them."""

from __future__ import annotations

import json
import tarfile

import pytest
import torch
from safetensors.torch import load_file

from flows.comparison.after_training import multiple_choice
from flows.comparison.after_training.big_bench import QUESTION, Task, read_tasks
from flows.comparison.after_training.multiple_choice import Asked, all_answers
from flows.comparison.cells import DIVERGED, train_and_measure
from flows.comparison.measuring import FINISHED
from flows.comparison.report import choices
from flows.comparison.report.compared import Compared
from flows.comparison.report.figures import AS_THERE, NOT_HERE, figures
from pipeline.tokenizer import load_tokenizer
from soe_model.model.backbone import build_backbone, token_losses
from storage_schema.domains import DomainStore
from tests.extras import needs
from tests.flows.comparison import toy
from tests.toy_store import write_texts

TASK = Task(
    name="toy",
    questions=["a cat?", "cats and dogs", "a dog "],
    choices=[["yes", "no no"], ["cat", "a dog", "cats, dogs"], ["Yes", "No"]],
    right=[0, 2, 1],
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return toy.toy_store(tmp_path_factory.mktemp("stores"))


@pytest.fixture(scope="module")
def texts_store(tmp_path_factory):
    """Of texts, with a byte-level BPE: a choice's tokens begin with a space."""
    domains = [
        [f"a {one}, yes, no {one}s and {one} number {n}. " * 3 for n in range(30)]
        for one in ("cat", "dog", "cow", "hen")
    ]
    return DomainStore(write_texts(tmp_path_factory.mktemp("texts") / "store", domains))


def example(question, **scores):
    return {"input": question, "target_scores": scores}


@pytest.fixture
def folder(tmp_path):
    """BIG-bench's folder with one task in multiple choice, one in free text, and one inside another."""
    examples = [
        example("a", x=1, y=0),
        example("b", x=0, y=1),
        example("even", x=1, y=1),
        {"input": "blank", "target_scores": {" ": 0, "x": 1}},
        {"input": "free", "target": "x"},
    ]
    place = tmp_path / "bigbench-1.0.0/bigbench/benchmark_tasks"
    for name, some in (
        ("one", examples),
        ("two/parts", examples[1:2] + examples[:1]),
        ("free", examples[3:]),
    ):
        (place / name).mkdir(parents=True)
        (place / name / "task.json").write_text(json.dumps({"examples": some}))
    return place


def test_tasks_are_read_from_a_folder_and_from_the_archive(folder, tmp_path):
    archive = tmp_path / "bigbench-1.0.0.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "bigbench-1.0.0", "bigbench-1.0.0")
    for place in (folder, tmp_path / "bigbench-1.0.0", archive):
        two, one = read_tasks(place, ["two/parts", "one"])
        assert (one.questions, one.choices, one.right) == (["a", "b"], [["x", "y"]] * 2, [0, 1])
        assert (two.name, two.questions, two.right) == ("two/parts", ["b", "a"], [1, 0])
        with pytest.raises(ValueError, match="has no task 'three'. Name BIG-bench's folder"):
            read_tasks(place, ["one", "three"])
        with pytest.raises(ValueError, match="free has no two examples in multiple choice"):
            read_tasks(place, ["free"])
    (tmp_path / "text").write_text("no archive")
    with pytest.raises(ValueError, match="cannot be read as an archive"):
        read_tasks(tmp_path / "text", ["one"])
    with pytest.raises(ValueError, match="nothing is there. Name BIG-bench's folder"):
        read_tasks(tmp_path / "nowhere", ["one"])


def test_no_question_says_what_a_task_is_like_and_is_answered_too():
    assert TASK.part(0, 5).questions == ["a cat?", "a dog "] and TASK.part(1, 5).questions == [
        "cats and dogs"
    ]
    assert TASK.part(0, 1).right == [0] and TASK.part(1, 5).choices == TASK.choices[1:2]


def test_models_of_the_weights_answer_by_log_likelihood(tmp_path, texts_store, monkeypatch, capfd):
    needs("lm_eval", extra="exports")
    store = texts_store
    monkeypatch.setattr(multiple_choice, "run_tasks", lambda ask, cells, **_: [ask(*cell) for cell in cells])
    chosen = toy.settings(store.folder.parent, methods=["soup", "generic", "crisp"], checkpoint_seconds=60)
    there = toy.place(tmp_path / "compared", store, chosen)
    (there.folder / "progress").mkdir(parents=True)
    trained = toy.all_pretrainings(chosen, store)
    soup, generic, _ = trained
    of = Asked(tasks=[TASK], weights_TK=torch.eye(4)[2:3])
    cells = [cell for one in trained[:2] for cell in train_and_measure(there, one)]
    # CRISP, though it is there, has no model of other weights.
    done = [*cells, {"method": "crisp", "seed": 0, "status": FINISHED}]
    found = all_answers(there, of, trained, done)
    assert "it/s" not in (said := capfd.readouterr().err) and "lm_eval" not in said and "[Task" not in said
    assert [(one["method"], one["seed"]) for one in found] == [("soup", 0), ("generic", 0)]

    learner = soup.method.begin(soup.runs[0])
    learner.load_state_dict(load_file(there.training(soup).folder / "soup-state.safetensors"))
    of_generic = load_file(there.training(generic).folder / "generic-3.safetensors")["models"]
    models = learner.instantiate(of.weights_TK)[0], of_generic[0]
    tokenizer = load_tokenizer(store.folder.parent / "tokenizer")
    backbone = build_backbone(soup.method.soup.backbone, seed=0)

    def log_likelihood(question, choice):
        """Of the choice's tokens, with the space before it, after the question's."""
        asked, said = (tokenizer.encode([text])[0][:-1].tolist() for text in (question, f" {choice}"))
        kept = torch.tensor([[0, *asked, *said][-toy.LENGTH - 1 :]])
        with torch.no_grad():
            return -token_losses(backbone.module, kept)[0, -len(said) :].sum().item()

    for one, model_P in zip(found, models, strict=True):
        backbone.params_P.copy_(model_P)
        expected = []
        for question, of_question, right in zip(TASK.questions, TASK.choices, TASK.right, strict=True):
            scores = [log_likelihood(QUESTION.format(question), choice) for choice in of_question]
            expected.append(scores.pop(right) - max(scores))
        assert one["by_task"]["toy"]["margin"] == pytest.approx(expected, abs=1e-4)
        assert one["by_task"]["toy"]["right"] == [float(margin > 0) for margin in expected]

    monkeypatch.setattr(multiple_choice, "_ask", lambda *a: pytest.fail("it was asked again"))
    assert all_answers(there, of, trained, done) == found
    # One whose losses diverged has a training, and no answers.
    assert all_answers(there, of, trained, [done[0], done[1] | {"status": DIVERGED}]) == found[:1]


def answers(*shares):
    """Of soup and generic with each seed: how many of ten questions are right."""
    return [
        {"method": label, "seed": seed, "by_task": {"toy": {"right": of_ten(right), "margin": [0.1] * 10}}}
        for label, of_seeds in zip(("generic", "soup"), shares, strict=True)
        for seed, right in enumerate(of_seeds)
    ]


def of_ten(right):
    return [1.0] * right + [0.0] * (10 - right)


@pytest.mark.parametrize(
    ("generic", "soup", "verdict", "said"),
    [
        (
            (3, 4, 3),
            (6, 7, 6),
            AS_THERE,
            "share of right answers (BIG-bench's, not ARC's or MMLU's) lies 0.300 ± 0.000 below the soup's",
        ),
        ((6, 7, 6), (3, 4, 3), NOT_HERE, "MMLU's) lies 0.300 ± 0.000 above"),
        ((3,), (6,), NOT_HERE, "because 1 seed is too few to tell"),
    ],
)
def test_the_sentence_and_the_table(store, generic, soup, verdict, said):
    found = choices.collect([TASK], answers(generic, soup))
    assert [row["method"] for row in found["rows"]] == ["soup", "generic"]
    assert found["tasks"][0]["chance"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 2) / 3)
    compared = Compared(
        settings=toy.settings(store.folder.parent), sets=toy.toy_sets(store), cells=[], choices=found
    )
    [figure] = [one for one in figures(compared) if one["figure"] == "Figure 5"]
    assert figure["verdict"] == verdict and said in figure["said"]
    html = choices.table(found)
    assert (
        "ARC and MMLU" in html
        and '<th scope="row">toy</th><td>3</td><td>44%</td>' in html
        and "0.10 <span>" in html
    )
    assert choices.table(None) == ""
