"""The changes that CONTRIBUTING.md shows are made in a copy of the tree, and the code below them is run there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
TEXT = (REPOSITORY / "CONTRIBUTING.md").read_text("utf-8")
ROOMS = ("storage_schema", "pipeline", "soe_model", "flows", "tests")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, flags=re.S | re.M)


def change(tree: Path, diff: str) -> None:
    """Make the change: each hunk's old lines must be in its file, once."""
    for part in re.split(r"^\+\+\+ ", diff, flags=re.M)[1:]:
        name, _, hunks = part.partition("\n")
        file = tree / name
        text = file.read_text("utf-8") if file.exists() else ""
        for hunk in re.split(r"^@@\n", hunks, flags=re.M):
            lines = hunk.splitlines()
            old = "".join(line[1:] + "\n" for line in lines if not line.startswith("+"))
            new = "".join(line[1:] + "\n" for line in lines if not line.startswith("-"))
            assert not old or text.count(old) == 1, (name, old)
            text = text.replace(old, new) if old else new
        file.write_text(text, "utf-8")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tree")
    for room in ROOMS:
        shutil.copytree(REPOSITORY / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(REPOSITORY / name, folder)
    for diff in blocks("diff"):
        change(folder, diff)
    return folder


def test_each_change_works(tree):
    assert len(blocks("diff")) == len(blocks("python")) == 4
    ran = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks("python"))], cwd=tree, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr


def test_the_optimizer_passes_the_tests_of_all_of_them(tree):
    of_lion = "lion and not slow_one and not epsilon"  # those two are of Adam
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-k",
            of_lion,
            "tests/soe_model/optimizers/test_optimizers.py",
        ],
        cwd=tree,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0 and " passed" in ran.stdout, ran.stdout


def test_the_rooms_keep_to_their_work(tree):
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/test_architecture.py"],
        cwd=tree,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout


def test_what_is_shown_is_as_neat_as_the_rest(tree):
    for command in (["check", *ROOMS], ["format", "--check", "-q", *ROOMS]):
        ran = subprocess.run(
            [Path(sys.executable).parent / "ruff", *command], cwd=tree, capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stdout
