"""``soe status`` and ``soe doctor`` against a server played by the test: what they know, and what not."""

from __future__ import annotations

import json
import os
import signal
from functools import partialmethod

import pytest

from flows.cli import doctor
from flows.cli import stack_status as status_view
from flows.local_stack import crashed_runs as orphans
from flows.local_stack import state as stack_state
from flows.prefect_client.api import ApiError, PrefectApi
from flows.reporting.local_time import local_time
from tests.flows.cli.played_server import flow_run, lines_with


def test_status_shows_what_runs_and_then_what_ended(known, server, capsys):
    server.runs = [
        flow_run("busy-bee", "RUNNING", end=None),
        flow_run("done-deal"),
        flow_run("dull-dog", "CANCELLED", start=None),
    ]
    assert status_view.status() == 0
    shown = capsys.readouterr().out
    assert lines_with("bee", shown) == ["busy-bee pretrain-soe Running - -"]
    assert lines_with("deal", shown) == ["done-deal pretrain-soe Completed 2026-03-01 16:32:03+05:30 1:02:03"]
    assert lines_with("dog", shown) == ["dull-dog pretrain-soe Cancelled 2026-03-01 16:32:03+05:30 -"]
    assert shown.index("busy-bee") < shown.index("done-deal")
    assert "no flow run" not in shown.lower()


def test_status_without_a_run_under_way_says_so_beside_those_that_ended(known, server, capsys):
    server.runs = [flow_run(f"run-{number}") for number in range(9)]
    assert status_view.status() == 0
    shown = capsys.readouterr().out
    assert "No flow run is under way." in shown and len(lines_with("Completed", shown)) == 5
    server.runs = []
    assert status_view.status() == 0 and "No flow runs yet." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fails", "state"),
    [(500, "answers 500"), (503, "answers 503"), ("slow", "does not answer"), ("page", "does not answer")],
)
def test_status_says_what_it_cannot_know(known, server, capsys, monkeypatch, fails, state):
    """A server that is busy or ill is not down, and has not lost its runs."""
    server.runs, server.fails = [flow_run("busy-bee", "RUNNING")], fails
    monkeypatch.setattr(PrefectApi, "call", partialmethod(impatient, PrefectApi.call))
    assert status_view.status() == 1
    shown = capsys.readouterr().out
    assert state in lines_with("prefect-server.log", shown)[0]
    assert "unknown" in lines_with("prefect-worker.log", shown)[0]
    assert "Flow runs: unknown" in shown and "may be busy" in shown
    assert "down" not in shown and "o flow run" not in shown and "what is missing" not in shown
    finding = doctor.stack()
    assert finding.verdict == "note" and state in finding.text and "down" not in finding.text


def impatient(api, call, *words, timeout=60.0, **named):
    """So that a slow server costs the test less than a second."""
    return call(api, *words, timeout=0.2, **named)


def test_status_of_a_server_that_fails_at_its_runs_only(known, server, capsys, monkeypatch):
    answer = server.answer

    def ill(path, body):
        server.fails = 500 if "flow_runs" in path else None
        return answer(path, body)

    monkeypatch.setattr(server, "answer", ill)
    assert status_view.status() == 1
    shown = capsys.readouterr().out
    assert "Flow runs: unknown" in shown and "500" in shown and "o flow run" not in shown


def test_a_dead_component_is_down(known, capsys):
    worker = known.processes["prefect-worker"].pid
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)
    assert status_view.status() == 1
    shown = capsys.readouterr().out
    assert "prefect-worker: down. `soe up` starts what is missing." in shown
    assert doctor.stack().verdict == "wrong" and "prefect-worker" in doctor.stack().text


def test_after_a_reboot_status_says_why_nothing_runs(known, monkeypatch, capsys):
    body = json.loads((stack_state.folder() / "state.json").read_text())
    for process in body["processes"].values():
        process["boot"] = "an earlier one"
    body["id"] = "that one's"
    (stack_state.folder() / "state.json").write_text(json.dumps(body))
    assert status_view.status() == 1
    assert "since this machine was started anew" in capsys.readouterr().out
    assert doctor.stack().verdict == "note" and "started anew" in doctor.stack().text


@pytest.mark.parametrize("reported", [True, False])
def test_a_run_that_reports_its_end_just_now_is_not_called_crashed(known, server, monkeypatch, reported):
    """Between the question which runs are under way and the look for its process, it reports and ends."""
    server.runs = [flow_run("quick", "RUNNING")]

    def looked(sign):
        server.runs[0]["state_type"] = "COMPLETED" if reported else "RUNNING"
        return set()

    monkeypatch.setattr(orphans, "carrying", looked)
    assert orphans.close(known, "why.") == ([] if reported else ["quick"])
    assert any(path.endswith("set_state") for path in server.asked) is not reported


def test_a_slow_server_is_not_called_absent(known, server):
    server.fails = "slow"
    with pytest.raises(ApiError, match="may be busy") as caught:
        known.api.call("POST", "/x", {}, timeout=0.2)
    assert "start one" not in str(caught.value) and caught.value.status == 0


def test_one_rule_for_times(known):
    assert (
        local_time("2026-03-01T10:00:00.123456Z") == local_time(1772359200.9) == "2026-03-01 15:30:00+05:30"
    )
