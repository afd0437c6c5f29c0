"""What a run lacked: one line at its end, and the checks that the next run makes up for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHECKS = """
import os, pytest
from tests import extras

HERE = bool(os.environ.get("HERE"))

@pytest.fixture(scope="module")
def browser():
    HERE or extras.missing("Chromium", "Debian's package chromium")

@pytest.mark.parametrize("page", ["atlas", "serving [1]"])
def test_page(browser, page): pass

@pytest.mark.needs("os" if HERE else "no_such_package", extra="interop")
def test_format(): pass

def test_elsewhere(): pytest.skip("this machine has CUDA")

def test_plain(): pass
"""


@pytest.fixture
def run(tmp_path):
    """Runs pytest on CHECKS with our hooks, and returns its exit status and lines."""
    (tmp_path / "test_checks.py").write_text(CHECKS)
    (tmp_path / "conftest.py").write_text("from tests.lacking import *")

    def run(*options: str, **variables: str) -> tuple[int, list[str]]:
        mine = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "SOE_"))}
        command = [sys.executable, "-m", "pytest", "-ra", "-p", "no:hypothesispytest", *options]
        environment = mine | {"PYTHONPATH": str(ROOT)} | variables
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout.splitlines()

    return run


@pytest.mark.parametrize("workers", [(), ("-n", "2")])
def test_what_a_run_lacked_is_one_line_and_another_run(run, workers):
    status, lines = run(*workers)
    assert status == 0
    [line] = [line for line in lines if "what is not here" in line]
    chromium = "Chromium (2: Debian's package chromium)"
    interop = "the extra interop (1: .venv/bin/pip install -c constraints.txt -e .[interop])"
    assert line == f"3 checks need what is not here: {chromium}, {interop}"
    assert "1 passed, 1 skipped, 3 need more" in lines[-1]
    [skipped] = [line for line in lines if line.startswith("SKIPPED")]
    assert skipped.endswith("this machine has CUDA")
    status, lines = run(*workers, "--lacking", SOE_CI="1")
    assert status == 1 and "3 errors" in lines[-1]


def test_the_next_run_makes_up_for_what_was_lacking(run):
    run()
    status, lines = run("--lacking", HERE="1", SOE_CI="1")
    assert status == 0 and "3 passed, 2 deselected" in lines[-1]
    status, lines = run("--lacking", HERE="1", SOE_CI="1")
    assert status == 0 and "5 deselected" in lines[-1]


def test_a_run_of_other_checks_between_forgets_nothing(run):
    run()
    run("-k", "plain")
    status, lines = run("--lacking", SOE_CI="1")
    assert status == 1 and "3 errors" in lines[-1]
    status, lines = run("--lacking", HERE="1", SOE_CI="1")
    assert status == 0 and "3 passed, 2 deselected" in lines[-1]


def test_without_pytests_cache_the_line_is_there_and_nothing_is_noted(run):
    status, lines = run("-p", "no:cacheprovider")
    assert status == 0 and sum("3 checks need what is not here" in line for line in lines) == 1
    status, lines = run("--lacking", "-p", "no:cacheprovider")
    assert status == pytest.ExitCode.USAGE_ERROR


def test_without_a_run_before_nothing_is_known_to_be_lacking(run):
    status, lines = run("--lacking")
    assert status == pytest.ExitCode.USAGE_ERROR
