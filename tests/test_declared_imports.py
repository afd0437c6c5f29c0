"""`make check` finds an import that the declared dependencies do not give: its own commands, on lines of code."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINES = {
    "product": {
        "pipeline/a.py": ("import sympy", "DEP003"),  # torch brings it
        "soe_model/a.py": ("def f():\n    import no_such_package", "DEP001"),
        "soe_model/b.py": ("from git_theta import metadata", "DEP004"),
        "flows/a.py": ("import moto", "DEP004"),
        "pipeline/b.py": ("import openvino  # deptry: ignore[DEP004]", None),
        "flows/b.py": ("import faiss, numpy\nfrom storage_schema.manifest import StoreError", None),
        "storage_schema/a.py": ("import pyarrow", None),
    },
    "tests": {
        "tests/test_a.py": ("import sympy", "DEP003"),
        "tests/benchmarks/a.py": ("import peft", "DEP004"),
        "tests/benchmarks/peers/a.py": ("import litdata", None),
        "tests/test_b.py": ("import moto, psutil, pytest\nfrom tests.toy_store import make_store", None),
    },
}
"""Files with their content, and what deptry must say of them."""


@pytest.mark.parametrize("which", LINES)
def test_an_undeclared_import_is_found(tmp_path, which):
    shown = subprocess.run(
        ["make", "-n", "check"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    commands = [shlex.split(line)[1:] for line in shown.splitlines() if re.match(r"\S*/deptry ", line)]
    [arguments] = [command for command in commands if ("tests" in command) == (which == "tests")]
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for path, (source, _) in LINES[which].items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(source + "\n")
    # Dependencies that this tree does not use are no complaint.
    deptry = [sys.executable, "-m", "deptry", "--no-ansi", *arguments, "--ignore", "DEP002"]
    said = subprocess.run(deptry, cwd=tmp_path, capture_output=True, text=True).stderr
    found = dict(re.findall(r"^(\S+\.py):\d+:\d+: (DEP\d+)", said, re.MULTILINE))
    assert found == {path: code for path, (_, code) in LINES[which].items() if code}, said


def test_an_installation_has_every_folder_of_python():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"]
    rooms = ("storage_schema", "pipeline", "soe_model", "flows")
    folders = {path.parent.relative_to(ROOT) for room in rooms for path in (ROOT / room).rglob("*.py")}
    assert sorted(listed) == sorted(".".join(folder.parts) for folder in folders)
