"""Multiple-choice tasks of BIG-bench, from its files as they are.

The source archive of PyPI's package bigbench has them; nothing of it is installed or run. They carry a canary: they are
for measuring, never for training.

    pip install setuptools wheel
    pip download --no-deps --no-build-isolation --no-binary bigbench bigbench==1.0.0
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage_schema.errors import UserError
from storage_schema.json_files import JSON_BYTES, as_object, parse_json, read_bounded

FOLDER, FILE = "benchmark_tasks", "task.json"
QUESTION = "Q: {}\nA:"
"""How a question is asked; a choice follows after a space."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Questions, each with its choices and the number of the right one."""

    name: str
    questions: list[str]
    choices: list[list[str]]
    right: list[int]

    def part(self, first: int, most: int) -> Task:
        """Every second question from `first` on, up to so many."""
        chosen = slice(first, first + 2 * most, 2)
        return Task(
            name=self.name,
            questions=self.questions[chosen],
            choices=self.choices[chosen],
            right=self.right[chosen],
        )


def read_tasks(place: str | Path, names: Sequence[str]) -> list[Task]:
    """The tasks of these names, of a folder `benchmark_tasks` (or one that holds it), or of the archive.

    Args:
        names: such as `strategyqa`, or `logical_deduction/three_objects`.

    Raises ValueError for a place that holds none, and for names that are not there or have no multiple choice.
    """
    place = Path(place).expanduser()
    if not place.exists():
        raise UserError(f"multiple_choice is {str(place.absolute())!r}, and nothing is there. {HOW}")
    files = _of_archive(place, set(names)) if place.is_file() else _of_folder(place, set(names))
    found = {name: _task(name, body) for name, body in files}
    if missing := [name for name in names if name not in found]:
        raise UserError(f"{place} has no task {missing[0]!r}. {HOW}")
    return [found[name] for name in names]


HOW = (
    "Name BIG-bench's folder benchmark_tasks, or its archive: "
    "pip install setuptools wheel; pip download --no-deps --no-build-isolation --no-binary bigbench bigbench==1.0.0."
)


def _name(path: str) -> str:
    """…/benchmark_tasks/NAME/task.json → NAME."""
    return path.rpartition(f"{FOLDER}/")[2].removesuffix(f"/{FILE}")


def _of_folder(folder: Path, names: set[str]) -> Iterator[tuple[str, Any]]:
    inside = next((path for path in [folder, *folder.glob(f"**/{FOLDER}")] if path.name == FOLDER), folder)
    for name in sorted(names):
        file = inside / name / FILE
        if file.is_file():
            yield name, parse_json(read_bounded(file, JSON_BYTES), file)


def _of_archive(archive: Path, names: set[str]) -> Iterator[tuple[str, Any]]:
    left = set(names)
    try:
        with tarfile.open(archive, "r|*") as tar:
            for member in tar:
                name = _name(member.name)
                if member.isfile() and member.name.endswith(f"/{FILE}") and name in left:
                    left.remove(name)
                    content = tar.extractfile(member)
                    assert content is not None
                    yield name, parse_json(content.read(JSON_BYTES + 1), f"{name} in {archive}")
                if not left:
                    return
    except tarfile.TarError as error:
        raise UserError(f"{archive} cannot be read as an archive: {error}. {HOW}") from error


def _task(name: str, body: Any) -> Task:
    """The examples with scores of two or more choices, none of them blank, of which one is the best."""
    questions, choices, right = [], [], []
    for example in as_object(body, name).get("examples", []):
        scores = example.get("target_scores")
        asked = example.get("input")
        if (
            isinstance(asked, str)
            and isinstance(scores, dict)
            and len(scores) > 1
            and all(map(str.strip, scores))
        ):
            best = max(scores.values())
            if list(scores.values()).count(best) == 1:
                questions.append(asked)
                choices.append(list(scores))
                right.append(list(scores.values()).index(best))
    if len(questions) < 2:
        raise UserError(
            f"{name} has no two examples in multiple choice (target_scores with one best): leave it out."
        )
    return Task(name=name, questions=questions, choices=choices, right=right)
