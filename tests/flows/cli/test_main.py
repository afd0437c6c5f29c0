"""The ``soe`` command: its options, and ``soe run`` on a real stack."""

from __future__ import annotations

import subprocess
import sys

import pytest
from rich.console import Console

from flows.cli import follow_run as follow
from flows.cli import main as cli
from flows.prefect_client.api import ApiError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=1", ("a", 1)),
        ("a=x", ("a", "x")),
        ("a=x=y", ("a", "x=y")),
        ('a=["b"]', ("a", ["b"])),
        ("a=", ("a", "")),
        ("a=null", ("a", None)),
    ],
)
def test_a_settings_value_is_json_or_text(text, value):
    assert cli._setting(text) == value


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["run"],
        ["run", "x", "--param", "novalue"],
        ["run", "x", "--config", "[1]"],
        ["run", "x", "--config", "{"],
        ["up", "--prefect-port", "80"],
        ["up", "--ray-port", "many"],
        ["atlas"],
    ],
)
def test_bad_command_lines_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: soe" in capsys.readouterr().err


def test_the_command_starts_without_the_heavy_libraries():
    code = "import flows.cli.main, sys; print({'prefect', 'ray', 'torch', 'matplotlib', 'plotly'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


def test_run_follows_to_success(followed):
    done, _ = followed["fine"]
    assert done.returncode == 0, done.stderr
    assert "count sheep: 3 of 3 sheep" in done.stdout and "completed" in done.stdout


def test_run_fails_with_the_jobs_error_line(followed):
    done, _ = followed["fail"]
    assert done.returncode == 1
    assert "error: the corpus /nowhere is empty: give a folder that holds text." in done.stderr


def test_run_says_what_the_server_refuses(running):
    done = running.run("soe", "run", "build-domains", "--param", "vocab_size=5")
    assert done.returncode == 1 and "vocab_size" in done.stderr and "300" in done.stderr


def test_run_without_a_server_says_how_to_start_one(place):
    done = place.run("soe", "run", "build-domains")
    assert done.returncode == 1 and "soe up" in done.stderr


class Server:
    """Plays a server that answers in turn with these states, then falls silent for `silent` questions."""

    def __init__(self, states, silent=0, status=0):
        self.states, self.silent, self.status = list(states), silent, status

    def flow_run(self, flow_run_id):
        if len(self.states) == 1 and self.silent:
            self.silent -= 1
            raise ApiError("no Prefect server answers", self.status)
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return {"name": "run", "state_name": state, "state_type": state.upper(), "state": {"message": "why"}}

    def progress(self, flow_run_id):
        return [{"description": "count sheep: 1 of 2 sheep"}, {"description": "another's"}]


@pytest.mark.parametrize(("terminal", "status"), [(True, 0), (False, 0), (False, 503)])
def test_following_survives_a_server_that_is_away_for_a_moment(terminal, status, monkeypatch, capsys):
    monkeypatch.setattr(follow, "POLL_SECONDS", 0)
    console = Console(force_terminal=terminal, width=100)
    server = Server(["Scheduled", "Running", "Failed"], silent=1, status=status)
    run = follow.follow(server, "id", console=console)
    assert follow.outcome(run) == "why"
    assert "count sheep" in capsys.readouterr().out


def test_following_gives_up_a_server_that_stays_away(monkeypatch):
    monkeypatch.setattr(follow, "SILENT_SECONDS", 0.1)
    with pytest.raises(ApiError):
        follow.follow(Server(["Running"], silent=99), "id", console=Console())


@pytest.mark.parametrize(
    ("state", "said"), [("COMPLETED", None), ("CANCELLED", "cancelled: why"), ("CRASHED", "crashed: why")]
)
def test_the_outcome_names_every_other_end(state, said):
    assert follow.outcome({"state_type": state, "state": {"message": "why"}}) == said
