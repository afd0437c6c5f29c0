"""``soe demo``: runs the commands that a user would type, and says whether the soup was worth it."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from flows.cli import demo_report, stack_status
from flows.cli.follow_run import follow, outcome
from flows.local_stack import health as stack_health
from flows.local_stack import prefect_profile
from flows.local_stack import state as stack_state
from flows.prefect_client.api import PrefectApi
from storage_schema.json_files import read_object
from storage_schema.layout import home

STORE, SOUP, GENERIC, SPECIALISTS = "demo", "demo-soup", "demo-generic", "demo"
PRESET, ASKED, SECONDS = "tiny", "asked", "command_seconds"
_UUID = re.compile(r"UUID: ([0-9a-f-]{36})")


@dataclass(frozen=True)
class Step:
    """One deployment to run."""

    title: str
    deployment: str
    config: dict[str, Any]

    @property
    def command(self) -> list[str]:
        parameters = json.dumps({"config": self.config})
        return ["prefect", "deployment", "run", self.deployment, "--params", parameters]


class StepError(RuntimeError):
    """A step failed; the message is for the user."""


def steps() -> list[Step]:
    """The demonstration, in order."""
    # We depend on all of these, so every machine has them.
    held_out = ["sympy", "sqlalchemy", "fonttools", "networkx", "pygments", "apprise", "redis"]
    build = {"store": STORE, "held_out_sources": held_out, "held_out_fraction": 0.1}
    build |= {"max_passages": 10_000, "vocab_size": 2048, "max_seq_length": 64}
    build |= {"coarse_clusters": 8, "leaf_clusters": 8}
    # On two cores so small a model trains faster on one of them: reading its data needs the other.
    train = {"store": STORE, "preset": PRESET, "cores_per_worker": 1}
    special: dict[str, Any] = {
        "soup": SOUP,
        "held_out_of": STORE,
        "compare_with": GENERIC,
        "method": "refined",  # named, so that a demonstration of another default is seen to be another
        "output": SPECIALISTS,
        "max_sets": 60,
        "evaluation_passages": 64,
        "bootstrap": 0,  # it gives an interval that the table does not show
    }
    # With two domains in half of the mixtures specialists gain more and the generic instance loses
    # (tests/benchmarks/records/2026-11-30-sparser.md). By size, as the twin reads them: else some of the difference is
    # what each has read.
    laws = [{"law": "sparse", "share": 0.5, "support_size": s, "by_size": True} for s in (2, 8)]
    soup = {"name": SOUP, "num_experts": 32, "meta_distribution": "mixed", "laws": laws, **train}
    return [
        Step("Build domains from the text on this machine", "build-domains", build),
        Step("Pretrain the soup", "pretrain-soe", soup),
        Step("Pretrain its generic twin", "pretrain-soe", {"name": GENERIC, "method": "generic", **train}),
        Step("Make and measure the specialists", "specialize", special),
    ]


def main() -> int:
    """Run the demonstration; returns the exit code."""
    console = Console(highlight=False, soft_wrap=True)
    begun = time.monotonic()
    known = stack_state.load()
    if known is None or not stack_health.is_up(known) or not prefect_profile.is_active(known.api.url):
        console.rule("Start the stack", align="left")
        stack_status.up()
        known = stack_state.load()
    assert known is not None
    try:
        _refuse_another()
        _run_all(steps(), known.api, console)
        result = _collect() | {ASKED: _asked(), SECONDS: _seconds(begun)}
    except StepError as error:
        print(error, file=sys.stderr)
        print("Finished steps are kept: mend this and run `soe demo` again.", file=sys.stderr)
        return 1
    console.rule("Was the soup worth it?", align="left")
    folder = demo_report.write(result)
    demo_report.show(result, console)
    seconds = time.monotonic() - begun
    console.print(f"Written to {folder}/summary.json and {folder}/plot.png, {seconds:.0f} s in all.")
    stack_status.print_places(known)
    console.print("The stack is still up, so that you can look around. Stop it: soe down")
    return 0


def _run_all(chosen: list[Step], api: PrefectApi, console: Console) -> None:
    """Run one step after another, because each needs the one before it.

    If an earlier demonstration finished them all, they start together: the jobs themselves see that nothing is left to
    do. Raises :class:`StepError`.
    """
    if _finished_before():
        console.print(
            "An earlier demonstration is finished: all commands start together and find nothing left to do."
        )
        for step, run_id in [(step, _type(step, console)) for step in chosen]:
            _follow(step, run_id, api, console)
        return
    for step in chosen:
        _follow(step, _type(step, console), api, console)


def _summary() -> Path:
    return home() / "demo" / "summary.json"


def _seconds(begun: float) -> float | None:
    """Seconds of the command that finished the demonstration (since `begun`, monotonic); later ones keep its value."""
    there = _summary()
    return read_object(there).get(SECONDS) if there.exists() else round(time.monotonic() - begun, 1)


def _asked() -> dict[str, Any]:
    """What this demonstration asks for, as JSON keeps it; a preset is named, so its numbers stand beside the name."""
    from soe_model.presets import preset

    found = {"configurations": [step.config for step in steps()], "preset": preset(PRESET).described()}
    return dict(json.loads(json.dumps(found)))


def _refuse_another() -> None:
    """Raise :class:`StepError` where an earlier demonstration with other settings lies, in which ours would not fit."""
    there = _summary()
    if not there.exists() or read_object(there).get(ASKED) == _asked():
        return
    folders = f"stores/{STORE}", f"runs/{SOUP}", f"runs/{GENERIC}", f"soups/{SOUP}", f"soups/{GENERIC}"
    raise StepError(
        f"error: {there} is of a demonstration with other settings. To keep it, set SOE_HOME to a new folder. Else "
        f"remove, in {home()}: {', '.join(folders)}, specialists/{SPECIALISTS} and demo."
    )


def _finished_before() -> bool:
    """Whether an earlier demonstration finished and its results are still there."""
    try:
        _collect()
    except (OSError, ValueError):
        return False
    return _summary().exists()


def _collect() -> dict[str, Any]:
    return demo_report.collect(store=STORE, soup=SOUP, generic=GENERIC, specialists=SPECIALISTS)


def _type(step: Step, console: Console) -> str:
    """Run the step's command as a user would; returns the flow run's id."""
    console.rule(step.title, align="left")
    console.print(f"$ {shlex.join(step.command)}", style="cyan")
    done = subprocess.run(
        [str(Path(sys.executable).with_name("prefect")), *step.command[1:]],
        env=stack_state.without_pointers(os.environ) | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
    )
    found = _UUID.search(done.stdout)
    if done.returncode or not found:
        raise StepError(f"error: {(done.stderr or done.stdout).strip()}")
    return found[1]


def _follow(step: Step, run_id: str, api: PrefectApi, console: Console) -> None:
    begun = time.monotonic()
    problem = outcome(follow(api, run_id, console=console))
    if problem:
        raise StepError(problem)
    page = f"{api.url.removesuffix('/api')}/runs/flow-run/{run_id}"
    console.print(f"{step.title}: done in {time.monotonic() - begun:.0f} s. See {page}")
