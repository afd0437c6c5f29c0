"""Every command of the README and the guides, in their order, on the real stack; only sizes and paths are replaced.

The guides' trees, links and names are compared with the files."""

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

ROOMS = ("storage_schema", "pipeline", "soe_model", "flows", "tests")
GUIDES = {
    name: (REPOSITORY / name).read_text("utf-8")
    for name in (
        "README.md",
        "flows/README.md",
        "flows/COMPARING.md",
        "flows/EXPORTS.md",
        "flows/OPERATING.md",
        "flows/FAULTS.md",
        "pipeline/README.md",
        "soe_model/README.md",
        "storage_schema/README.md",
        "tests/README.md",
    )
}
"""In the order in which their commands are typed: those of one guide may need what the guides before it made."""
PAPERS = GUIDES | {
    name: (REPOSITORY / name).read_text("utf-8") for name in ("CONTRIBUTING.md", "ADDING.md", "CHANGELOG.md")
}
RUN_ELSEWHERE = {
    "make demo": "tests/flows/cli/test_demo.py checks its commands; it is run by hand for its result",
    "make test": "the suite itself; this is another one",
    "source .venv/bin/activate": "the tests run in that environment",
    "soe up": "conftest.py",
    "soe down": "tests/flows/local_stack/test_lifecycle.py",
}


IN_PROCESS = [
    ["soe", name]
    for name in "atlas audit blend materialize plan ratios score specialize verify weights".split()
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


QUICKLY = {
    '"steps": 2000': '"steps": 12, "warmup_steps": 2, "batch_size": 8',
    '"size": "small"': '"methods": ["soup", "generic"], "seeds": [0], "points": 1, "batch_size": 8, "tokens": 12288',
}
"""Twelve steps of what a guide trains for minutes."""


def blocks(language: str) -> list[str]:
    return [
        block
        for text in GUIDES.values()
        for block in re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.S | re.M)
    ]


def commands() -> list[str]:
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


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
    for words, quick in QUICKLY.items():
        command = command.replace(words, quick)
    return subprocess.run(
        ["bash", "-c", command.replace("/data", str(data))],
        env=running.environment | {"HF_HUB_OFFLINE": "1"},
        cwd=work,
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.xdist_group("guides")  # with a stack of their own, beside the other tests of one
@pytest.mark.parametrize("all_of_them", [False, pytest.param(True, marks=pytest.mark.long)])
def test_every_command_of_the_guides_works(running, data, all_of_them):
    assert len(set(commands())) == len(commands())  # each is typed once
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
    compared = json.loads((home / "comparisons/which/results.json").read_text())
    labels = "soup", "soup-blended", "soup-refined", "generic"
    assert [(row["method"], row["seeds"]) for row in compared["rows"]] == [(label, 1) for label in labels]
    assert (home / "comparisons/which/comparison.html").exists()
    # One command asks for the notes' specialist again, without Prefect: a skip.
    assert any(command.startswith("python -m flows.jobs.specialize") for command in run)
    assert made.stat().st_mtime_ns == made_at


def test_commands_run_elsewhere_are_in_the_guides():
    assert set(RUN_ELSEWHERE) <= set(commands())


@pytest.mark.xdist_group("guides")  # after the commands, which make the specialist
def test_the_python_of_the_guides_loads_the_specialist(running):
    scope: dict = {}
    for code in blocks("python"):
        exec(code.replace('".soe/', f'"{running.folder}/soe/'), scope)
    assert scope["weights"].sum() == 1
    ids = scope["tokenizer"]("hello", return_tensors="pt").input_ids
    assert scope["model"](input_ids=ids).logits.shape[-1] == scope["model"].config.vocab_size


def test_the_readme_is_short_and_no_guide_is_long():
    lines = {name: text.count("\n") for name, text in GUIDES.items()}
    assert lines["README.md"] <= 150
    assert {name: number for name, number in lines.items() if number > 250} == {}


@pytest.mark.parametrize("room", ROOMS)
def test_a_rooms_tree_names_every_file_and_no_other(room):
    tree = re.search(r"^## The tree\n.*?^```\n(.*?)^```", GUIDES[f"{room}/README.md"], flags=re.S | re.M)[1]
    folder, named = "", set()
    for line in tree.splitlines():
        name, _, says = line.strip().partition("  ")
        assert says.strip(), line
        if name.endswith("/"):
            folder = name
        else:
            named |= {(folder if line[0] == " " else "") + one for one in name.split(", ")}
    there = {
        path.relative_to(REPOSITORY / room).as_posix()
        for path in (REPOSITORY / room).rglob("*.py")
        if path.name != "__init__.py" and not (room == "tests" and path.name.startswith("test_"))
    }
    python = {name for name in named if name.endswith(".py")}
    assert (there - python, python - there) == (set(), set()), "not in the tree, not in the room"
    assert [name for name in named if not (REPOSITORY / room / name).is_file()] == []


def test_links_lead_to_files_and_headings():
    for name, text in PAPERS.items():
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if "://" in link:
                continue
            target, _, heading = link.partition("#")
            path = (REPOSITORY / name).parent / target if target else REPOSITORY / name
            assert path.exists(), f"{name}: {link}"
            if heading:
                headings = re.findall(r"^#+ (.*)", path.read_text("utf-8"), flags=re.M)
                assert heading in [re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings], (
                    link
                )


def test_tests_modules_and_make_targets_that_are_named_exist():
    files = list((REPOSITORY / "tests").rglob("test_*.py"))
    tests = {path.stem for path in files}
    for path in files:
        tests |= set(re.findall(r"^def (test_\w+)", path.read_text("utf-8"), flags=re.M))
    targets = re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text("utf-8"), flags=re.M)
    for name, text in PAPERS.items():
        assert set(re.findall(r"\btest_\w+", text)) <= tests, name
        assert set(re.findall(r"^make ([\w-]+)|`make ([\w-]+)", text, flags=re.M)) <= {
            pair for target in targets for pair in ((target, ""), ("", target))
        }, name
        for module in re.findall(r"python -m ((?:tests|flows)[\w.]*\w)(?=[\s`])", text):
            at = REPOSITORY / module.replace(".", "/")
            assert at.with_suffix(".py").is_file() or (at / "__main__.py").is_file(), f"{name}: {module}"
