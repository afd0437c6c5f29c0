"""A stack whose components are sleeping processes and whose servers always answer: for what ``soe up`` and ``soe down``
do with processes and state, without the minute that the real ones take.
"""

from __future__ import annotations

import pytest

from flows.local_stack import lifecycle as stack
from flows.local_stack import processes, start_components
from flows.prefect_client.api import PrefectApi


@pytest.fixture()
def stand_ins(monkeypatch, tmp_path):
    """The module ``flows.local_stack.lifecycle`` with such components, in a SOE_HOME and a PREFECT_HOME of their
    own."""
    monkeypatch.setenv("SOE_HOME", str(tmp_path / "soe"))
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("PREFECT_PROFILES_PATH", raising=False)
    monkeypatch.setattr(PrefectApi, "healthy", lambda api: True)
    monkeypatch.setattr(PrefectApi, "call", lambda api, method, path, *rest, **named: [])
    monkeypatch.setattr(start_components, "command", lambda known, name: ["sleep", "60"])
    monkeypatch.setattr(start_components, "ray_answers", lambda known: True)
    monkeypatch.setattr(start_components, "worker_is_online", lambda known: True)
    monkeypatch.setattr(stack, "is_up", lambda known: all(map(known.alive, known.components)))
    monkeypatch.setattr(start_components, "_deploy", lambda known: None)
    yield stack
    processes.stop(lambda: processes.carrying(f"SOE_HOME={tmp_path / 'soe'}"), patience=2)


def start(**options):
    """``soe up`` on ports that are free."""
    ports = {name: processes.free_port() for name in ("prefect_port", "dashboard_port", "ray_port")}
    return stack.up(**ports, **options)
