"""``soe doctor``: what it calls wrong."""

from __future__ import annotations

import pytest

from flows.cli import doctor


def having(**versions):
    names = {name.replace("_", "-"): version for name, version in versions.items()}
    return lambda name: names.get(name)


@pytest.mark.parametrize(
    ("installed", "verdict", "words"),
    [
        (having(faiss_cpu="1.15.1"), "good", "faiss-cpu 1.15.1"),
        (having(faiss_gpu="1.15.1"), "good", "faiss-gpu"),
        (having(), "wrong", "[cpu]"),
        (having(faiss_cpu="1.15.1", faiss_gpu="1.15.1"), "wrong", "pip uninstall"),
    ],
)
def test_exactly_one_faiss(installed, verdict, words):
    finding = doctor.faiss_distribution(installed)
    assert finding.verdict == verdict and words in finding.text


def test_versions_outside_their_range_are_wrong():
    def installed(name):
        return {"fastapi": "0.165.0", "prefect": None}.get(name, doctor.installed_version(name))

    findings = {f.about: f for f in doctor.packages(installed)}
    assert findings["fastapi"].verdict == "wrong" and "0.165.0 is outside" in findings["fastapi"].text
    assert findings["prefect"].verdict == "wrong" and "pip install" in findings["prefect"].text
    assert findings["packages"].verdict == "good" and "torch" in findings["packages"].text


def test_what_the_environment_has_fits():
    assert all(f.verdict == "good" for f in doctor.packages())


@pytest.mark.parametrize(
    ("names", "faiss", "faiss_gpu", "verdicts"),
    [
        ([], 0, False, ["good"]),
        ([], 0, True, ["good", "note"]),
        (["H200"], 1, True, ["good"]),
        (["H200", "H200"], 0, False, ["good", "note"]),
    ],
)
def test_gpus(names, faiss, faiss_gpu, verdicts):
    assert [f.verdict for f in doctor.gpu_findings(names, faiss, faiss_gpu)] == verdicts


def test_a_folder_that_cannot_be_written_is_wrong(monkeypatch, tmp_path):
    monkeypatch.setenv("SOE_HOME", str(tmp_path / "soe"))
    assert doctor.disk().verdict != "wrong"
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert doctor.disk().verdict == "wrong"


def test_memory_and_cores_are_those_of_our_container(monkeypatch):
    monkeypatch.setattr(doctor, "memory_limit", lambda: 3 * 10**9)
    monkeypatch.setattr(doctor, "available_memory", lambda: 2 * 10**9)
    monkeypatch.setattr(doctor, "available_cores", lambda: 5)
    found = doctor.memory()
    assert found.text.startswith("3.0 GB, 2.0 GB available; 5 CPU cores") and found.verdict != "good"


def test_variables_that_lead_elsewhere_are_noted(monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://elsewhere/api")
    assert doctor.environment().verdict == "note" and "PREFECT_API_URL" in doctor.environment().text


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_the_exit_code_says_whether_something_is_wrong(monkeypatch, capsys, wrong):
    found = [doctor.Finding("good", "a", "fine [1]")] + [doctor.Finding("wrong", "b", "bad")] * wrong
    monkeypatch.setattr(doctor, "examine", lambda: iter(found))
    assert doctor.main() == (1 if wrong else 0)
    said = capsys.readouterr().out
    assert "fine [1]" in said
    assert ("Nothing is wrong", "1 thing is wrong", "2 things are wrong")[wrong] in said


def test_the_whole_report_on_a_running_stack(running):
    done = running.run("soe", "doctor")
    assert running.stack().prefect_url in done.stdout, done.stdout + done.stderr
    for about in ("Python", "FAISS", "compiler", "memory", "SOE_HOME", "embedder", "GPUs"):
        assert about in done.stdout
