"""A Prefect server played by the test, behind a stack of sleeping processes."""

from __future__ import annotations

import json
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from rich.console import Console

from flows.cli import logs as logs_view
from flows.cli import stack_status as status_view
from flows.local_stack import health as stack_health
from flows.local_stack import processes
from flows.local_stack import state as stack_state
from flows.local_stack.state import Stack
from flows.prefect_client import api as prefect_api
from flows.prefect_client.api import PrefectApi


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
