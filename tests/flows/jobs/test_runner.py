"""How a job ends: a summary, one clear line for what the user can mend, or a traceback for a fault."""

import sys

import pytest

from flows.jobs import runner
from flows.reporting import job_output
from flows.settings import Pretrain
from storage_schema.errors import UserError


def end(monkeypatch, capsys, run, config="{}"):
    monkeypatch.setattr(sys, "argv", ["job", "--config", config])
    code = 0
    try:
        runner.main(Pretrain, run)
    except SystemExit as stopped:
        code = stopped.code
    return code, capsys.readouterr().out.strip().splitlines()[-1]


def fail(error):
    def run(settings):
        raise error

    return run


def test_success_is_a_summary(monkeypatch, capsys):
    code, line = end(monkeypatch, capsys, lambda settings: {"name": settings.name}, '{"name": "a"}')
    assert code == 0
    assert job_output.read(line) == ("summary", {"name": "a"})


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('{"steps": 0}', "steps: Input should be greater than or equal to 1 (got 0)"),
        ('{"steps": 1}', "n is 3; it must be 4"),
    ],
)
def test_what_the_user_can_mend_is_one_line(monkeypatch, capsys, config, said):
    code, line = end(monkeypatch, capsys, fail(UserError("n is 3;\n it must be 4")), config)
    assert (code, line) == (2, f"error: {said}")


def test_a_fault_keeps_its_traceback(monkeypatch, capsys):
    with pytest.raises(ZeroDivisionError):
        end(monkeypatch, capsys, fail(ZeroDivisionError()))
