"""Inside each room: which sub-room may import which, no circle of sub-rooms or of modules, and no crowded folder.

Imports inside functions count as those at the top do. Arrows between the four rooms: test_architecture.py.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("storage_schema", "pipeline", "soe_model", "flows")
# fmt: off
ARROWS: dict[str, set[str]] = {
    # The walk of the data, downwards.
    "pipeline/cores": set(),
    "pipeline/tasks": {"cores"},
    "pipeline/places": set(),
    "pipeline/corpus": {"places", "tasks"},
    "pipeline/passages": {"corpus", "tasks"},
    "pipeline/tokenizer": {"passages"},
    "pipeline/embeddings": {"cores", "tasks"},
    "pipeline/tree": set(),
    "pipeline/domains": {"embeddings", "tasks", "tokenizer", "tree"},
    "pipeline/mixtures": set(),
    "pipeline/remote": {"places", "tasks"},
    "pipeline/stream": {"mixtures", "remote"},
    "pipeline/specialists": {"corpus", "embeddings", "passages", "tree"},
    "pipeline/planning": {"corpus", "embeddings", "passages"},
    "pipeline/reports": {"remote", "tasks", "tokenizer"},
    # From the parts of a soup to what is made of a finished one.
    "soe_model/reference": set(),
    "soe_model/bounds": set(),
    "soe_model/optimizers": {"bounds"},
    "soe_model/model": {"optimizers"},
    "soe_model/presets": {"bounds", "model", "optimizers"},
    "soe_model/training": {"model", "optimizers", "presets"},
    "soe_model/planning": {"model", "optimizers", "presets"},
    "soe_model/files": {"model", "presets", "training"},
    "soe_model/specialists": {"bounds", "files", "model"},
    "soe_model/methods": {"bounds", "model", "optimizers", "planning", "presets", "specialists", "training"},
    "soe_model/exports": {"files", "model", "specialists"},
    # From what all doors share to the doors.
    "flows/settings": set(),
    "flows/errors": set(),
    "flows/machine_memory": set(),
    "flows/cluster": set(),
    "flows/http_client": set(),
    "flows/prefect_client": {"http_client"},
    "flows/local_stack": {"http_client", "machine_memory", "prefect_client"},
    "flows/reporting": set(),
    "flows/atlas": set(),
    "flows/specialists": {"reporting", "settings"},
    "flows/store_build": {"atlas", "reporting", "settings"},
    "flows/training/ray_internals": {"cluster"},
    "flows/training": {"errors", "machine_memory", "reporting", "settings", "training/ray_internals"},
    "flows/comparison": {"errors", "reporting", "settings", "training"},
    "flows/comparison/after_training": {"comparison", "reporting", "settings", "specialists"},
    "flows/comparison/report": {"atlas", "comparison", "comparison/after_training", "settings"},
    "flows/jobs": {"cluster", "comparison", "comparison/after_training", "comparison/report", "errors", "reporting",
                   "settings", "specialists", "store_build", "training", "training/ray_internals"},
    "flows/prefect_flows": {"atlas", "errors", "reporting", "settings", "training"},
    "flows/serving": {"atlas", "reporting", "specialists"},
    "flows/cli": {"atlas", "errors", "jobs", "local_stack", "machine_memory", "prefect_client", "reporting", "serving",
                  "settings", "specialists", "training"},
}
"""Sub-room, or a module that stands beside them, and what it imports of its own room: exactly this."""
# fmt: on
MOST = 15
CROWDED: dict[str, str] = {
    "tests": "the tests of the whole tree, and what those of several rooms share: stand-ins, toy corpora and stores",
}
"""Folders of more than MOST modules, each with its reason."""
LONGEST = 250
STILL_LONG = {"tests/benchmarks/streaming.py"}
"""Files of more lines than LONGEST that are to be cut."""


def modules() -> dict[str, ast.Module]:
    """Full name of every module of the rooms, and its source."""
    found = {}
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found[name] = ast.parse(path.read_text("utf-8"))
    return found


def module_arrows(there: Mapping[str, ast.Module]) -> dict[str, set[str]]:
    """Which module imports which, of its own room; a package's own name stands for its `__init__`."""
    arrows: dict[str, set[str]] = {}
    for name, tree in there.items():
        found: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                taken = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= taken & there.keys()
                if not taken <= there.keys():  # not modules alone
                    found.add(node.module)
        arrows[name] = {
            target for target in found & there.keys() if target.split(".")[0] == name.split(".")[0]
        } - {name}
    return arrows


def place(module: str, there: Iterable[str]) -> str:
    """The sub-room of a module, or the module itself where it stands beside them: `pipeline/corpus`."""
    folder = module if any(name.startswith(f"{module}.") for name in there) else module.rpartition(".")[0]
    return (folder if "." in folder else module).replace(".", "/")


def room_arrows(arrows: Mapping[str, set[str]]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name, targets in arrows.items():
        here = place(name, arrows)
        there = {place(target, arrows) for target in targets} - {here}
        found.setdefault(here, set()).update(there)
    return found


def circle(arrows: Mapping[str, set[str]]) -> list[str]:
    """One circle, in its order; empty where there is none."""
    try:
        list(TopologicalSorter(arrows).static_order())
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.fixture(scope="module")
def arrows() -> dict[str, set[str]]:
    return module_arrows(modules())


def test_sub_rooms_import_what_the_table_says(arrows):
    found = {
        here: {target.removeprefix(here.split("/")[0] + "/") for target in targets}
        for here, targets in room_arrows(arrows).items()
        if "/" in here and not here.startswith("storage_schema/")
    }
    more = [
        f"{here} → {to}"
        for here, targets in found.items()
        for to in sorted(targets - ARROWS.get(here, set()))
    ]
    unknown = sorted(found.keys() - ARROWS.keys())
    less = [
        f"{here} → {to}"
        for here, targets in ARROWS.items()
        for to in sorted(targets - found.get(here, set()))
    ]
    assert (more, unknown, less) == ([], [], []), "not allowed, not in the table, in the table and not needed"


def test_there_is_no_circle_of_sub_rooms(arrows):
    assert circle(room_arrows(arrows)) == []


def test_there_is_no_circle_of_modules(arrows):
    assert circle(arrows) == []


def test_no_folder_is_crowded():
    folders: dict[str, int] = {}
    for room in (*ROOMS, "tests"):
        for path in (ROOT / room).rglob("*.py"):
            if path.name != "__init__.py":
                folder = path.parent.relative_to(ROOT).as_posix()
                folders[folder] = folders.get(folder, 0) + 1
    crowded = {folder for folder, number in folders.items() if number > MOST}
    assert crowded == CROWDED.keys(), "too many modules for one look, or no longer"


def test_no_file_is_long():
    lines = {
        path.relative_to(ROOT).as_posix(): path.read_text("utf-8").count("\n")
        for room in (*ROOMS, "tests")
        for path in (ROOT / room).rglob("*.py")
    }
    assert {
        path: number for path, number in lines.items() if number > LONGEST and path not in STILL_LONG
    } == {}


def test_a_late_import_and_a_circle_are_seen():
    there = {
        "a.b.one": ast.parse("def f():\n    from a.c import two"),
        "a.b.one_more": ast.parse(""),
        "a.b": ast.parse(""),
        "a.c": ast.parse(""),
        "a.c.two": ast.parse("import a.d"),
        "a.d": ast.parse("from a.b.one import f"),
        "a": ast.parse(""),
    }
    arrows = module_arrows(there)
    assert arrows["a.b.one"] == {"a.c.two"}
    assert room_arrows(arrows)["a/b"] == {"a/c"}
    assert set(circle(arrows)) == {"a.b.one", "a.c.two", "a.d"}
    assert set(circle(room_arrows(arrows))) == {"a/b", "a/c", "a/d"}
