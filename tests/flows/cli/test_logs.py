"""``soe logs`` against a server played by the test: every line, none twice, and what it says when it cannot know."""

from __future__ import annotations

import pytest

from flows.cli import logs as logs_view
from flows.local_stack import state as stack_state
from flows.local_stack.state import StackError
from flows.prefect_client.api import ApiError
from tests.flows.cli.played_server import flow_run


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
