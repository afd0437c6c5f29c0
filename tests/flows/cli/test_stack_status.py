"""``soe status``, ``soe logs`` and ``soe doctor`` against a server played by the test: what they know, and what not."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import uuid
from functools import partialmethod
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from rich.console import Console

from flows.cli import doctor
from flows.cli import logs as logs_view
from flows.cli import stack_status as status_view
from flows.local_stack import crashed_runs as orphans
from flows.local_stack import health as stack_health
from flows.local_stack import processes
from flows.local_stack import state as stack_state
from flows.local_stack.state import Stack, StackError
from flows.prefect_client import api as prefect_api
from flows.prefect_client.api import ApiError, PrefectApi
from flows.reporting.local_time import local_time


class Server:
    """A Prefect server, as far as these commands ask: `runs` and `logs`; or `fails` as it is told to."""

    def __init__(self):
        self.fails: int | str | None = None
        self.runs: list[dict] = []
        self.logs: list[dict] = []
        self.asked: list[str] = []

    def answer(self, path: str, body: dict) -> object:
        self.asked.append(path)
        if path == "/api/health":
            return True
        if path == "/api/flow_runs/filter":
            chosen = body["flow_runs"]
            types = chosen.get("state", {}).get("type", {}).get("any_")
            names = chosen.get("name", {}).get("any_")
            found = [run for run in self.runs if not types or run["state_type"] in types]
            return [run for run in found if not names or run["name"] in names][: body["limit"]]
        if path.startswith("/api/flow_runs/"):
            return self.runs[0]
        if path == "/api/logs/filter":
            assert body["limit"] <= logs_view.PAGE
            after = body["logs"].get("timestamp", {}).get("after_", "")
            rows = [row for row in self.logs if row["timestamp"] >= after]
            rows = rows[::-1] if body["sort"] == "TIMESTAMP_DESC" else rows
            first = body.get("offset", 0)
            return rows[first : first + body["limit"]]
        if path.startswith("/api/deployments/"):
            return {"name": "pretrain-soe"}
        if path.endswith("/workers/filter"):
            return [{"status": "ONLINE"}]
        return []


@pytest.fixture()
def server():
    played = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
            if played.fails == "slow":
                threading.Event().wait(0.5)  # time.sleep does nothing here
            answer = (
                b"<html>" if played.fails == "page" else json.dumps(played.answer(self.path, body)).encode()
            )
            self.send_response(played.fails if isinstance(played.fails, int) else 200)
            self.end_headers()
            try:
                self.wfile.write(answer)
            except OSError:  # nobody waits any more
                pass

        do_POST = do_GET

        def log_message(self, *arguments):
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    played.port = listening.server_port
    yield played
    listening.shutdown()
    listening.server_close()


@pytest.fixture()
def known(server, monkeypatch, tmp_path):
    """A stack with this server; its components are sleeping processes, and Ray answers."""
    monkeypatch.setenv("SOE_HOME", str(tmp_path / "soe"))
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(stack_health, "ray_answers", lambda known: True)
    monkeypatch.setattr(prefect_api.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(status_view, "_CONSOLE", Console(highlight=False, soft_wrap=True, width=200))
    stack_state.prepare_folders()
    known = Stack(prefect_port=server.port, dashboard_port=2, ray_port=3)
    for name in stack_state.COMPONENTS:
        known.processes[name] = processes.start(
            ["sleep", "60"],
            environment={processes.MARK: known.mark(name)},
            log=stack_state.logs_folder() / f"{name}.log",
            folder=tmp_path,
        )
    known.save()
    monkeypatch.setattr(PrefectApi, "of_active_profile", lambda: known.api)
    yield known
    processes.stop(lambda: processes.members((), known.mark()), patience=2)
    monkeypatch.delenv("TZ")
    time.tzset()


def flow_run(name, state="COMPLETED", start="2026-03-01T10:00:00Z", end="2026-03-01T11:02:03.4Z", **more):
    return {
        "id": str(uuid.uuid4()),
        "name": name,
        "deployment_id": "d",
        "state_type": state,
        "state_name": state.capitalize(),
        "start_time": start,
        "end_time": end,
    } | more


def lines_with(text: str, shown: str) -> list[str]:
    return [" ".join(line.split()) for line in shown.splitlines() if text in line]


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
    assert "down" not in shown and "o flow run" not in shown and "soe up" not in shown
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


def rows(count: int) -> list[dict]:
    return [
        {"id": str(n), "timestamp": f"2026-03-01T10:{n // 60:02}:{n % 60:02}.5Z", "message": f"line {n}"}
        for n in range(count)
    ]


@pytest.mark.parametrize(("count", "asked"), [(1000, 500), (450, 500), (400, 400), (30, 20)])
def test_logs_gives_as_many_lines_as_were_asked_for(known, server, capsys, count, asked):
    server.runs, server.logs = [flow_run("done-deal")], rows(count)
    assert logs_view.show("done-deal", lines=asked, follow=False) == 0
    said = capsys.readouterr().out.splitlines()[1:]
    wanted = range(max(0, count - asked), count)
    assert [line.split(" ", 2)[2] for line in said] == [f"line {n}" for n in wanted]
    assert said[0].startswith("2026-03-01 15:3") and said[0].split()[1].endswith("+05:30")


def test_logs_loses_no_line_that_comes_between_two_pages(known, server, capsys, monkeypatch):
    server.runs, server.logs = [flow_run("busy-bee")], rows(600)
    answer = server.answer

    def meanwhile(path, body):
        given = answer(path, body)
        server.logs = rows(len(server.logs) + 7)
        return given

    monkeypatch.setattr(server, "answer", meanwhile)
    assert logs_view.show("busy-bee", lines=500, follow=False) == 0
    said = [line.split(" ", 2)[2] for line in capsys.readouterr().out.splitlines()[1:]]
    numbers = [int(line.removeprefix("line ")) for line in said]
    assert numbers == list(range(numbers[0], numbers[0] + 500))


@pytest.mark.parametrize("fails", [500, 502])
def test_logs_that_are_followed_wait_for_a_server_that_is_ill_for_a_moment(
    known, server, capsys, monkeypatch, fails
):
    server.runs, server.logs = [flow_run("done-deal")], rows(3)
    monkeypatch.setattr(logs_view, "POLL_SECONDS", 0)
    answer = server.answer

    def ill(path, body):
        server.fails = fails if len(server.asked) in (2, 4) else None
        return answer(path, body)

    monkeypatch.setattr(server, "answer", ill)
    assert logs_view.show(None, lines=2, follow=True) == 0
    assert "line 2" in capsys.readouterr().out


def test_logs_of_a_server_that_is_ill_say_so(known, server):
    server.fails = 500
    with pytest.raises(ApiError, match="500") as raised:
        logs_view.show("busy-bee", lines=5, follow=False)
    assert "no flow run" not in str(raised.value)


def test_logs_of_a_component_before_there_was_a_stack(tmp_path, monkeypatch):
    monkeypatch.setenv("SOE_HOME", str(tmp_path))
    with pytest.raises(StackError, match="no stack was ever started"):
        logs_view.show("ray-head", lines=5, follow=False)


def test_logs_of_a_component_that_has_written_none(known):
    (stack_state.logs_folder() / "ray-head.log").unlink()
    with pytest.raises(StackError, match=r"ray-head\.log is not there yet: `soe up`"):
        logs_view.show("ray-head", lines=5, follow=False)


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
