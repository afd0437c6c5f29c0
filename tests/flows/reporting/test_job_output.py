"""The lines by which a job tells its flow how it goes."""

from __future__ import annotations

import pytest

from flows.reporting import job_output

BODY = {"stage": "count sheep", "done": 1, "total": 3, "unit": "sheep", "note": "{one} of them\nlimps"}


@pytest.mark.parametrize("kind", [job_output.PROGRESS, job_output.CARD, job_output.SUMMARY])
@pytest.mark.parametrize("worker", ["", "(pid=7) ", "(Map(f) pid=7, ip=127.0.0.1) "])
def test_what_is_written_is_read_back_also_from_a_worker(kind, worker, capsys):
    job_output.write(kind, BODY)
    [line] = capsys.readouterr().out.splitlines()
    assert job_output.read(worker + line) == (kind, BODY)


@pytest.mark.parametrize(
    "line", ["", "embed: 1 of 3", "soe-progress {cut of", 'I read soe-summary {"a": 1}', 'soe-other {"a": 1}']
)
def test_other_lines_are_for_people(line):
    assert job_output.read(line) is None


def test_a_card_is_for_a_flow_only(monkeypatch, capsys):
    job_output.write_card("estimate", "# A while")
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("SOE_PROGRESS", "json")
    job_output.write_card("estimate", "# A while")
    told = job_output.read(capsys.readouterr().out.rstrip())
    assert told == ("card", {"name": "estimate", "markdown": "# A while"})
