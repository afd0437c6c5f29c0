"""What the specialise job refuses, before anything starts. (tests/flows/test_readme.py runs it from end to end.)"""

import json
from types import SimpleNamespace

import pytest

from flows.jobs import specialize
from flows.reporting import job_output
from flows.reporting.progress import progress
from flows.settings import Specialize
from pipeline.specialists.sets import SpecialistSet
from storage_schema.manifest import StoreError


def read(tmp_path, text, **settings):
    (tmp_path / "notes.txt").write_text(text)
    return specialize.read_sets(Specialize(texts={"notes": str(tmp_path / "notes.txt")}, **settings))


def test_texts_are_cut_and_evaluation_is_disjoint(tmp_path):
    paragraphs = "".join(f"Paragraph {n} " + "of some words " * 60 + "\n\n" for n in range(30))
    [made] = read(tmp_path, paragraphs, evaluation_passages=4, max_texts=5)
    assert len(made.evaluation) == 4 and len(made.texts) == 5
    assert not set(made.evaluation) & set(made.texts)


@pytest.mark.parametrize("text", ["", "   \n\n  \n"])
def test_zero_texts_are_refused(tmp_path, text):
    with pytest.raises(ValueError, match="specialist set notes: no text in|is empty"):
        read(tmp_path, text)


def test_too_few_texts_to_evaluate_on_are_refused(tmp_path):
    with pytest.raises(ValueError, match="notes has 1 passages; it needs at least one, and 10 more"):
        read(tmp_path, "one short passage", evaluation_passages=10)


def test_no_set_at_all_is_refused():
    with pytest.raises(ValueError, match="no specialist set: name files of texts"):
        specialize.read_sets(Specialize())


def test_a_held_out_source_named_as_one_of_the_texts_is_refused(monkeypatch, tmp_path):
    """Both would be written to one folder."""
    held_out = SpecialistSet(name="notes", texts=["a"], evaluation=["b"])
    monkeypatch.setattr(specialize, "held_out_sets", lambda *a, **k: [held_out])
    with pytest.raises(ValueError, match="two sets are named 'notes'.*give the one of `texts` another name"):
        read(tmp_path, "one text\n\nanother", held_out_of="mine")


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", ""])
def test_a_name_that_is_no_folder_name_is_refused(tmp_path, name):
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(ValueError, match="cannot name a specialist"):
        specialize.read_sets(Specialize(texts={name: str(tmp_path / "notes.txt")}))


def test_a_soup_that_is_not_there_is_named(ray_cluster, monkeypatch, tmp_path):
    monkeypatch.setenv("SOE_HOME", str(tmp_path))
    with pytest.raises(StoreError, match="no soup at .*/soups/nothing: soup.json is missing"):
        specialize.run(Specialize(soup="nothing", texts={"a": "/nowhere"}))


@pytest.fixture()
def played(monkeypatch, tmp_path):
    """A soup, a maker and a written specialist played by the test; the settings of one set of texts."""
    bank, config = SimpleNamespace(num_params=100), SimpleNamespace(num_experts=2)
    soup = SimpleNamespace(folder=tmp_path, digest="s" * 64, bank=bank, config=config)
    monkeypatch.setattr(specialize.SoupOfExperts, "open", lambda *a, **k: soup)
    monkeypatch.setattr(specialize, "read_manifest", lambda *a: SimpleNamespace(digest="d" * 64, files=()))
    (tmp_path / "notes.txt").write_text("one text\n\nanother")
    return Specialize(texts={"notes": str(tmp_path / "notes.txt")}, output=str(tmp_path / "made"))


def test_losses_of_an_earlier_run_are_gone_when_a_run_measures_none(played, tmp_path):
    measured = {"specialists": ["notes"], "gains": {}, "warnings": {}, "specialist_sets": [{"name": "notes"}]}
    specialize.run_here(played, lambda *a: measured)
    assert json.loads((tmp_path / "made/evaluation.json").read_text()) == measured | {"notes": {}}
    again = played.model_copy(update={"rule": "tree", "evaluation_passages": 0})
    specialize.run_here(again, lambda *a: {"specialists": ["notes"], "gains": {}, "warnings": {}})
    assert not (tmp_path / "made/evaluation.json").exists()


def test_a_run_takes_the_field_it_is_told_and_says_how_texts_were_taken(played, tmp_path, capsys):
    (tmp_path / "given").mkdir()
    (tmp_path / "given/a.jsonl").write_text('{"content": "a text"}\n{"content": "another"}\n')
    (tmp_path / "given/b.tsv").write_text("no text")
    config = {"texts": {"notes": str(tmp_path / "given")}, "text_field": "content", "output": played.output}
    made = specialize.run_here(
        Specialize(**config), lambda *a: {"specialists": ["notes"], "gains": {}, "warnings": {}}
    )
    said = "Files of the texts that were not read: 1 .tsv."
    assert made["notes"] == {"notes": [said]} and f"notes: {said}" in capsys.readouterr().out


def test_the_making_of_the_last_specialist_is_reported(played, monkeypatch, tmp_path, capsys):
    class Maker:
        def __init__(self, soup, device):
            pass

        def make(self, sets, method, twin):
            with progress("make specialists", "models") as report:
                for number in range(len(sets)):
                    report(number, len(sets))
                    yield SimpleNamespace(recipe=None, instance_P=None, report={})
                report(len(sets), len(sets))

    counts = {"texts": {"count": 2, "domains": 1, "entropy": 0.0}}
    monkeypatch.setattr(specialize, "SpecialistMaker", Maker)
    monkeypatch.setattr(
        specialize, "write_specialist", lambda *a, **k: SimpleNamespace(counts=counts, configuration={})
    )
    monkeypatch.setenv("SOE_PROGRESS", "json")
    specialize.make(played, tmp_path, specialize.read_sets(played), tmp_path / "made")
    last = job_output.read(capsys.readouterr().out.splitlines()[-1]).body
    assert (last["stage"], last["done"], last["total"]) == ("make specialists", 1, 1)
