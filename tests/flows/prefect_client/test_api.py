"""Our calls to Prefect's REST API, against a server played by the test."""

from __future__ import annotations

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from flows.http_client import http_client
from flows.local_stack import processes
from flows.prefect_client import api as prefect_api
from flows.prefect_client.api import ApiError, PrefectApi


@pytest.fixture()
def server(monkeypatch):
    """A server that gives the prepared answers in turn; ``seen`` holds what it was asked."""
    monkeypatch.setattr(prefect_api.time, "sleep", lambda seconds: None)

    class Handler(BaseHTTPRequestHandler):
        answers: list[tuple[int, object]] = []
        leads_to: str | None = None
        seen: list[tuple[str, str | None, bytes]] = []

        def answer(self):
            length = int(self.headers.get("Content-Length") or 0)
            self.seen.append((self.path, self.headers.get("Authorization"), self.rfile.read(length)))
            status, body = self.answers.pop(0)
            self.send_response(status)
            if self.leads_to:
                self.send_header("Location", self.leads_to)
            self.end_headers()
            self.wfile.write(b"" if body is None else json.dumps(body).encode())

        do_GET = do_POST = answer

        def log_message(self, *arguments):
            pass

    running = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    Handler.url = f"http://127.0.0.1:{running.server_port}/api"
    yield Handler
    running.shutdown()
    running.server_close()


def test_a_busy_server_is_asked_again(server):
    server.answers[:] = [(503, None), (429, {"detail": "wait"}), (200, [1])]
    assert PrefectApi(url=server.url).call("GET", "/x") == [1]


def test_a_server_that_stays_busy_is_an_error(server):
    server.answers[:] = [(503, {"detail": "locked"})] * 20
    with pytest.raises(ApiError, match="locked"):
        PrefectApi(url=server.url).call("GET", "/x")
    assert len(server.answers) == 13


def test_other_refusals_are_not_repeated_and_give_the_servers_words(server):
    server.answers[:] = [(409, {"detail": "Validation failed"}), (200, None)]
    with pytest.raises(ApiError, match="Validation failed") as caught:
        PrefectApi(url=server.url).call("POST", "/x", {})
    assert caught.value.status == 409 and len(server.answers) == 1


@pytest.mark.parametrize(
    ("credentials", "header"),
    [({}, None), ({"auth_string": "soe:x"}, "Basic c29lOng="), ({"key": "k"}, "Bearer k")],
)
def test_credentials(server, credentials, header):
    server.seen.clear()
    server.answers[:] = [(200, None)]
    assert PrefectApi(url=server.url, **credentials).call("GET", "/x") is None
    assert server.seen[0][1] == header


def test_a_repeated_request_makes_one_run(server):
    server.seen.clear()
    server.answers[:] = [(200, {"id": "d"}), (503, None), (201, {"id": "r"})]
    assert PrefectApi(url=server.url).create_flow_run("a/a", {"config": {}}) == {"id": "r"}
    first, second = (json.loads(body) for _, _, body in server.seen[1:])
    assert first == second and len(first["idempotency_key"]) == 36


def test_no_server_says_how_to_start_one():
    with pytest.raises(ApiError, match="soe up") as caught:
        PrefectApi(url=f"http://127.0.0.1:{processes.free_port()}/api").call("GET", "/x")
    assert caught.value.status == 0


@pytest.fixture()
def elsewhere():
    """A socket that listens, and answers nobody."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        yield listening


def port(listening: socket.socket) -> int:
    return listening.getsockname()[1]


def nobody_came_to(listening: socket.socket) -> bool:
    try:
        listening.accept()
    except BlockingIOError:
        return True
    return False


@pytest.mark.parametrize("status", [301, 302, 307])
def test_the_password_follows_no_redirect(server, elsewhere, status):
    server.leads_to = f"http://127.0.0.1:{port(elsewhere)}/api/x"
    server.answers[:] = [(status, None)]
    with pytest.raises(ApiError, match=str(status)) as caught:
        PrefectApi(url=server.url, auth_string="soe:x").call("GET", "/x", timeout=0.5)
    assert caught.value.status == status and nobody_came_to(elsewhere)


def test_the_password_goes_to_no_proxy(server, elsewhere, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{port(elsewhere)}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    server.answers[:] = [(200, [1])]
    http_client.cache_clear()
    assert PrefectApi(url=server.url, auth_string="soe:x").call("GET", "/x", timeout=0.5) == [1]
    assert nobody_came_to(elsewhere)


def test_what_is_no_address_is_an_error_of_the_address():
    for url in ("http://[/api", "127.0.0.1:4200/api", "ftp://127.0.0.1/api"):
        with pytest.raises(ApiError, match="no Prefect server answers at"):
            PrefectApi(url=url).call("GET", "/x")


def test_the_stages_of_a_run_are_told_from_a_table_of_a_store_of_that_name(server):
    stages = [{"stage": "embed passages", "state": "running", "done": 1, "total": 2}]
    others = [{"data": "not json"}, {"data": json.dumps([{"domain": 1}])}, {"data": None}]
    server.answers[:] = [(200, [*others, {"data": json.dumps(stages)}])]
    assert PrefectApi(url=server.url).stages("r") == stages
    server.answers[:] = [(200, others)]
    assert PrefectApi(url=server.url).stages("r") == []
