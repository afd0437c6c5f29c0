"""How a job shows its progress: JSON to a flow that asks for it, else words on stderr; nothing of it on stdout."""

from __future__ import annotations

import itertools
import sys

import pytest

from flows.cli import main as cli
from flows.reporting import job_output, progress
from tests.toy_store import make_store


@pytest.fixture()
def clock(monkeypatch):
    """A clock that moves on by four seconds at each look."""
    ticks = itertools.count(0, 4)
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(ticks)))


def count(to: int = 3, first: int = 1) -> None:
    with progress.progress("count sheep", "sheep") as report:
        for done in range(first, to + 1):
            report(done, to)


def test_without_a_terminal_a_quick_stage_says_nothing(capsys):
    count()
    assert capsys.readouterr() == ("", "")


def test_without_a_terminal_a_long_stage_says_a_plain_line_on_stderr_now_and_then(capsys, clock):
    count(100, first=50)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert (
        out == "" and 10 < len(lines) < 40
    )  # four seconds a look, two looks or so a report, ten between lines
    assert lines[0].startswith("count sheep: 5") and " of 100 sheep, 5" in lines[0]
    # A resumed stage: what was done before it began says nothing of its rate.
    assert "per second" in lines[0] and float(lines[0].split(" %, ")[1].split()[0]) < 0.25
    assert lines[0].endswith(" left") and lines[-1].startswith("count sheep: 100 of 100 sheep, 100")


def test_a_flow_gets_lines_of_json(capsys, monkeypatch):
    monkeypatch.setenv("SOE_PROGRESS", "json")
    count()
    out, err = capsys.readouterr()
    told = [job_output.read(line) for line in out.splitlines()]
    assert err == "" and {line.kind for line in told} == {"progress"} and told[0].body["total"] == 0
    assert told[-1].body == {"stage": "count sheep", "unit": "sheep", "done": 3, "total": 3}


def test_on_a_terminal_whose_stdout_is_a_file_the_bar_is_on_stderr(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    count()
    out, err = capsys.readouterr()
    assert out == "" and "count sheep" in err


def test_an_audit_in_a_pipe_prints_its_result_only(tmp_path, capsys):
    store = make_store(tmp_path / "store", [300, 200])
    cli.main(["audit", str(store.parent if store.name == "domains" else store)])
    assert "soe-progress" not in "".join(capsys.readouterr())
