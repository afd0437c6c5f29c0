"""The log files of the components, played by the test: no stack runs."""

from __future__ import annotations

import pytest

from flows.local_stack import component_logs
from flows.local_stack.component_logs import log_file, log_lines, set_aside, why_it_ended


@pytest.fixture()
def log(monkeypatch, tmp_path):
    """The log of the Ray head: it has two lines."""
    monkeypatch.setenv("SOE_HOME", str(tmp_path))
    path = log_file("ray-head")
    path.parent.mkdir(parents=True)
    path.write_text("first\nsecond\n")
    return path


@pytest.fixture()
def waits(monkeypatch):
    """What happens while `log_lines` waits, in turn: each is called in place of one sleep."""
    happens: list = []
    monkeypatch.setattr(component_logs.time, "sleep", lambda seconds: happens.pop(0)())
    return happens


def append(path, text):
    with open(path, "a") as file:
        file.write(text)


@pytest.mark.parametrize("last", [1, 2, 9])
def test_the_last_lines(log, last):
    assert list(log_lines("ray-head", last, follow=False)) == ["first", "second"][-last:]


def test_new_lines_are_followed_past_a_restart(log, waits):
    """The log of before is renamed while its process still writes; some time later there is a new file."""

    def aside():
        append(log, "before the end\n")
        set_aside("ray-head")
        append(log.with_suffix(".log.1"), "the end\n")

    def again():
        append(log.with_suffix(".log.1"), "after the end\n")
        log.write_text("started\n")

    waits += [lambda: append(log, "third\n"), aside, again, lambda: append(log, "ready\n")]
    lines = log_lines("ray-head", 1, follow=True)
    wanted = ["second", "third", "before the end", "the end", "after the end", "started", "ready"]
    assert [next(lines) for _ in wanted] == wanted and not waits


def test_a_second_restart_is_followed_too(log, waits):
    def restart(name):
        set_aside("ray-head")
        log.write_text(f"{name}\n")

    waits += [lambda: restart("one"), lambda: restart("two")]
    lines = log_lines("ray-head", 1, follow=True)
    assert [next(lines) for _ in range(3)] == ["second", "one", "two"]


def test_why_a_component_ended(log):
    assert why_it_ended("ray-head") == f"The end of {log}:\n  first\n  second"
    append(log, "OSError: Address already in use\n")
    assert "taken a port: OSError: Address already in use" in why_it_ended("ray-head")
