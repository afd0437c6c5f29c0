"""The changes that ADDING.md shows are made in a copy of the tree, and the code below them is run there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import test_architecture, test_subrooms

pytestmark = pytest.mark.xdist_group("contributing")  # the changes are made and run once
REPOSITORY = Path(__file__).parents[1]
TEXT = (REPOSITORY / "ADDING.md").read_text("utf-8")
RULES = (REPOSITORY / "CONTRIBUTING.md").read_text("utf-8")
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


@pytest.fixture(scope="module")
def ran(tree) -> subprocess.CompletedProcess[str]:
    """The code below the changes, then the tests of the optimizers: one process, which imports torch once.

    It loads no plug-in of pytest: none is needed, and importing them takes long.
    """
    of_lion = "lion and not slow_one and not epsilon"  # those two are of Adam
    arguments = ["-q", "--noconftest", "-p", "no:cacheprovider", "-k", of_lion]
    code = [*blocks("python"), "print('each block ran')", "import pytest"]
    code.append(
        f"raise SystemExit(pytest.main({[*arguments, 'tests/soe_model/optimizers/test_optimizers.py']}))"
    )
    return subprocess.run(
        [sys.executable, "-c", "\n".join(code)],
        cwd=tree,
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
    )


def test_each_change_works(ran):
    assert len(blocks("diff")) == len(blocks("python")) == 4
    assert "each block ran\n" in ran.stdout, ran.stderr


def test_the_optimizer_passes_the_tests_of_all_of_them(ran):
    assert ran.returncode == 0 and " passed" in ran.stdout, ran.stdout


def test_the_rooms_keep_to_their_work(tree, monkeypatch):
    """Files that no change touches are those that test_architecture.py reads."""
    monkeypatch.setattr(test_architecture, "ROOT", tree)
    monkeypatch.setattr(test_subrooms, "ROOT", tree)
    for path in set(re.findall(r"^\+\+\+ (\S+)", TEXT, flags=re.M)):
        source = (tree / path).read_text("utf-8")
        assert test_architecture.forbidden_arrows(path, source) == []
        assert not path.startswith("flows/") or test_architecture.arithmetic(path, source) == []
    test_architecture.test_training_needs_neither_arrow_nor_ray()
    arrows = test_subrooms.module_arrows(test_subrooms.modules())
    assert any(name.endswith(".lion") for name in arrows)  # of the copy
    test_subrooms.test_sub_rooms_import_what_the_table_says(arrows)
    test_subrooms.test_there_is_no_circle_of_modules(arrows)
    test_subrooms.test_no_folder_is_crowded()


def test_what_is_shown_is_as_neat_as_the_rest(tree):
    for command in (["check", *ROOMS], ["format", "--check", "-q", *ROOMS]):
        ran = subprocess.run(
            [Path(sys.executable).parent / "ruff", *command], cwd=tree, capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stdout


def test_where_things_are():
    """Each of the twenty answers is a file or a folder of the tree; so is each path that the changes' text names."""
    table = RULES.partition("| where is … | there |")[2].partition("\n\n")[0].splitlines()[2:]
    answers = [re.findall(r"`([^`]+)`", row.split(" | ")[1]) for row in table]
    assert len(answers) == 20 and all(answers)
    assert [path for paths in answers for path in paths if not (REPOSITORY / path).exists()] == []
    named = re.findall(r"`([\w/]+/(?:\w+\.py)?)`", re.sub(r"^```.*?^```", "", TEXT, flags=re.S | re.M))
    assert len(named) > 10 and [path for path in named if not (REPOSITORY / path).exists()] == []
