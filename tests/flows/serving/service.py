"""What the tests of `soe serve` have in common: the application in this process, and the service as one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import openai
from fastapi.testclient import TestClient

from flows.local_stack.processes import free_port
from flows.serving.access import Access
from flows.serving.app import create_app

TOKEN = "a-token-of-the-tests-0123456789"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
CLIENTS = 32
ALGORITHM_3 = "--method", "nearest-centroids"
"""Of a soup that was not trained: another model for other texts, where `blended` would give the generic one."""


def ask(specialists, **options) -> TestClient:
    app = create_app(specialists, Access(TOKEN), **options)
    return TestClient(app, base_url="http://127.0.0.1:8300", raise_server_exceptions=False)


def stranger(client: TestClient) -> TestClient:
    """One that knows no token. Not entered: its end would be the application's."""
    return TestClient(client.app, base_url=client.base_url)


def refusal(answer, status: int) -> str:
    """The message of an error that has this status and OpenAI's form."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error["message"]


class Service:
    """`soe serve topics`, as one starts it."""

    def __init__(self, home: Path):
        self.port = free_port()
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "flows.cli.main",
                "serve",
                "topics",
                "--port",
                str(self.port),
                *ALGORITHM_3,
            ],
            env=os.environ | {"SOE_HOME": str(home), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said = ""
        self.drained = threading.Thread(target=self._listen, daemon=True)
        self.drained.start()
        deadline = time.monotonic() + 90
        while "Ctrl-C" not in self.said and self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        assert "Ctrl-C" in self.said, self.said
        self.url, self.token = f"http://127.0.0.1:{self.port}", (home / "served/.token").read_text().strip()
        self.page = f"{self.url}/?token={self.token}"

    def _listen(self) -> None:
        for line in self.process.stdout:
            self.said += line

    def openai(self, **options) -> openai.OpenAI:
        return openai.OpenAI(
            **{"base_url": f"{self.url}/v1", "api_key": self.token, "max_retries": 0} | options
        )
