"""The ``soe`` command: its options, and ``soe run`` on a real stack."""

from __future__ import annotations

import subprocess
import sys

import pytest
from rich.console import Console

from flows.cli import follow_run as follow
from flows.cli import main as cli
from flows.cli import plan
from flows.local_stack import lifecycle as stack
from flows.local_stack import state as stack_state
from flows.local_stack.state import StackError
from flows.prefect_client.api import ApiError
from storage_schema.errors import UserError


def fail(error):
    def run(*arguments, **options):
        raise error

    return run


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Missing command"),
        (["nonsense"], "'nonsense'"),
        (["run"], "Missing argument"),
        (["run", "x", "--param", "novalue"], "not NAME=VALUE"),
        (["run", "x", "--config", "[1]"], "not a JSON object"),
        (["run", "x", "--config", "{"], "not JSON"),
        (["up", "--prefect-port", "80"], "1024"),
        (["up", "--ray-port", "many"], "integer"),
        (["atlas"], "Missing argument"),
        (["logs", "-n", "0"], "1"),
        (["ratios", "a", "--steps", "5:5"], "FIRST:STOP"),
        (["plan", "--mfu", "0"], "not a positive number"),
        (["plan", "--batch-size", "none"], "'--batch-size': Input should be a valid integer"),
        (["specialize", "a", "--texts", "b", "--out", "c", "--rule", "round"], "'flat', 'tree'"),
        (["specialize", "a", "--texts", "b", "--out", "c", "--learning-rate", "inf"], "finite number"),
        (["specialize", "a", "--texts", "b", "--out", "c", "--replay-share", "1"], "less than 1"),
    ],
)
def test_bad_command_lines_are_refused(arguments, said, capsys):
    assert cli.main(arguments) == 2
    shown = capsys.readouterr().err
    assert "Usage: soe" in shown and said in shown


def test_a_user_error_is_one_line_on_stderr(monkeypatch, capsys):
    monkeypatch.setattr(plan, "main", fail(UserError("n is 3;\n it must be 4")))
    assert cli.main(["plan"]) == 1
    assert capsys.readouterr() == ("", "error: n is 3; it must be 4\n")


@pytest.mark.parametrize(
    "error", [ValueError("shapes (3,) (4,)"), FileNotFoundError(2, "No such file", "/x")]
)
def test_a_fault_keeps_its_traceback(monkeypatch, error):
    monkeypatch.setattr(plan, "main", fail(error))
    with pytest.raises(type(error)):
        cli.main(["plan"])


@pytest.mark.parametrize("command", ["up", "down", "status"])
def test_an_error_of_the_stack_is_one_line(command, monkeypatch, capsys):
    refused = fail(StackError("port 4200 is taken."))
    for name in ("up", "down"):
        monkeypatch.setattr(stack, name, refused)
    monkeypatch.setattr(stack_state, "load", refused)
    assert cli.main([command]) == 1
    assert capsys.readouterr().err == "error: port 4200 is taken.\n"


def test_ctrl_c_ends_quietly(monkeypatch, capsys):
    monkeypatch.setattr(plan, "main", fail(KeyboardInterrupt()))
    assert cli.main(["plan"]) == 130
    assert capsys.readouterr().err == ""


def test_the_command_starts_without_the_heavy_libraries():
    heavy = {"prefect", "ray", "torch", "matplotlib", "plotly", "numpy", "pyarrow"}
    code = f"import flows.cli.main, sys; print({heavy} & set(sys.modules))"
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

    def stages(self, flow_run_id):
        return [{"stage": "count sheep", "done": 1, "total": 2, "unit": "sheep", "note": "two more"}]


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
