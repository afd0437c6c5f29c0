"""Every command of the README, in its order, on the real stack; only sizes and paths are replaced."""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from flows.cli import main as cli
from tests.flows.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text("utf-8")
RUN_ELSEWHERE = {
    "make demo": "tests/flows/cli/test_demo.py checks its commands; it is run by hand for its result",
    "make test": "this very run",
    "make test-faults": "a suite of its own: minutes of killed processes",
    "source .venv/bin/activate": "the tests run in that environment",
    "soe up": "conftest.py",
    "soe down": "tests/flows/local_stack/test_lifecycle.py",
}


IN_PROCESS = [
    ["soe", name]
    for name in (
        "atlas",
        "audit",
        "blend",
        "materialize",
        "plan",
        "ratios",
        "score",
        "specialize",
        "verify",
        "weights",
    )
]
"""Without a process of their own, which takes seconds to import torch; tests/flows/cli/test_main.py starts the
command itself."""


def _in_this_process(command: str, running, work: Path) -> subprocess.CompletedProcess[str]:
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(said):
        patch.chdir(work)
        patch.setenv("SOE_HOME", running.environment["SOE_HOME"])
        patch.setenv("HF_HUB_OFFLINE", "1")
        code = cli.main(shlex.split(command)[1:])
    return subprocess.CompletedProcess(command, code, said.getvalue(), "")


LONG = ['"name": "twin"', '"held_out_of"', "deployment run add-documents"]
"""Deployment runs like those before them: a minute each on two cores, so they are typed in the long suite only."""


QUICKLY = '"steps": 12, "warmup_steps": 2, "batch_size": 8'


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.S)
    return [line for block in blocks for line in block.splitlines() if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A corpus of three sources, one of them `manuals`, and a folder of notes."""
    from tests.planted import planted_languages, write_planted_corpus

    folder = tmp_path_factory.mktemp("data")
    write_planted_corpus(
        folder / "planted.jsonl",
        planted_languages(3, seed=1),
        documents_per_language=60,
        words_per_document=60,
    )
    documents = [json.loads(line) for line in (folder / "planted.jsonl").read_text().splitlines()]
    sources = sorted({document["source"] for document in documents})
    with open(folder / "docs.jsonl", "w") as file:
        for document in documents:
            name = ["guides", "letters", "manuals"][sources.index(document["source"])]
            file.write(json.dumps({"text": document["text"], "source": name}) + "\n")
    (folder / "november.jsonl").write_text(
        '{"text": "The days are short and the lamps are lit.", "source": "letters"}\n'
    )
    (folder / "notes").mkdir()
    for number, document in enumerate(documents[:5]):
        (folder / "notes" / f"{number}.txt").write_text(document["text"])
    return folder


def type_in(command: str, running, data) -> subprocess.CompletedProcess[str]:
    work = data / "work"
    work.mkdir(exist_ok=True)
    if command.split()[:2] in IN_PROCESS:
        return _in_this_process(command.replace("/data", str(data)), running, work)
    return subprocess.run(
        [
            "bash",
            "-c",
            command.replace("/data", str(data)).replace('"steps": 2000', QUICKLY),
        ],
        env=running.environment | {"HF_HUB_OFFLINE": "1"},
        cwd=work,
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.parametrize("all_of_them", [False, pytest.param(True, marks=pytest.mark.long)])
def test_every_command_of_the_readme_works(running, data, all_of_them):
    run = [command for command in commands() if command not in RUN_ELSEWHERE]
    if not all_of_them:
        assert [sum(words in command for command in run) for words in LONG] == [1] * len(LONG)
        run = [command for command in run if not any(words in command for words in LONG)]
    assert len(run) >= 8
    home = running.folder / "soe"
    made = home / "specialists/notes/made.json"
    made_at = None
    for command in run:
        begun = time.monotonic()
        done = type_in(command, running, data)
        print(f"{time.monotonic() - begun:6.1f} s  {command[:100]}")
        # `soe doctor` and `soe status` end with 1 on a machine where something is amiss, and say what.
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        made_at = made_at or (made.stat().st_mtime_ns if made.exists() else None)
    if all_of_them:
        evaluation = json.loads((home / "specialists/held-out/evaluation.json").read_text())
        [manuals] = evaluation["specialist_sets"]
        assert manuals["name"] == "manuals" and manuals["unseen_source"] and manuals["passages"] == 20
        assert 0 < manuals["soup_loss"] < 20 and 0 < manuals["generic_loss"] < 20
    assert (home / "specialists/notes/notes/model.safetensors").exists()
    # The last command asks for the notes' specialist again, without Prefect: a skip.
    assert run[-1].startswith("python -m flows.jobs.specialize") and made.stat().st_mtime_ns == made_at


def test_commands_run_elsewhere_are_in_the_readme():
    assert set(RUN_ELSEWHERE) <= set(commands())


def test_the_python_of_the_readme_loads_the_specialist(running):
    scope: dict = {}
    for code in re.findall(r"^```python\n(.*?)^```", README, flags=re.S | re.M):
        exec(code.replace('".soe/', f'"{running.folder}/soe/'), scope)
    assert scope["weights"].sum() == 1
    ids = scope["tokenizer"]("hello", return_tensors="pt").input_ids
    assert scope["model"](input_ids=ids).logits.shape[-1] == scope["model"].config.vocab_size


def test_the_tree_names_every_file_and_no_other():
    tree = re.search(r"## The tree\n\n```\n(.*?)```", README, flags=re.S)[1]
    folder, named = "", set()
    for line in tree.splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            folder = name
        else:
            named |= {folder + one.strip() for one in line.split("  ")[1].split(",")}
    rooms = ("storage_schema", "pipeline", "soe_model", "flows")
    there = {
        path.relative_to(REPOSITORY).as_posix()
        for room in rooms
        for path in (REPOSITORY / room).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert {name for name in named if name.endswith(".py")} == there
    assert all((REPOSITORY / name).exists() for name in named)
