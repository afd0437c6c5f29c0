"""One store on clusters of one, two and three Ray nodes: the same digests, and how much sooner each stage is over.

    python -m tests.benchmarks.scale.nodes --folder FOLDER --nodes 1 2 3 --json result.json
    python -m tests.benchmarks.scale.nodes --folder FOLDER --nodes 3 --disturb 20 --json result.json

Nodes are processes of this machine, each bound to one core, the first node's to the first core. The driver is bound to
none. More nodes than cores share them, so that nothing is sooner; their digests count.

`--disturb` builds the store once undisturbed, on the first number of nodes, and then on each with kills: every so many
seconds a worker in its task, the third time a whole node (none comes for it yet, no kills follow), and so many times
(`--kill-driver`) the driver with its cluster, after which the same command goes on. Of each kill the stage is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from storage_schema.manifest import read_manifest, write_atomically
from tests.benchmarks.scale import job
from tests.benchmarks.scale.sizes import STORE_FILE, Cell

KILLS = "kills.txt"
STAGES = "passages", "tokenizer", "embeddings", "domains"
WORKING = {f"ray::{task}" for task in job.STAGE_OF_TASKS}
"""What a worker's command is while it has one of the tasks."""


def cell_of(passages: int, clusters: int) -> Cell:
    files = -(-passages // STORE_FILE)
    return Cell(
        name=f"nodes-{passages}",
        kind="store",
        passages=passages,
        files=files,
        clusters=clusters,
        sample=passages,
    )


@contextmanager
def cluster(nodes: int) -> Iterator[Any]:
    """A Ray cluster of `nodes` nodes of one core each, which this process joins as its driver."""
    import ray
    from ray.cluster_utils import Cluster

    cores = sorted(os.sched_getaffinity(0))
    head = {"num_cpus": 1, "include_dashboard": False}
    with bound_to(cores[0]):
        found = Cluster(initialize_head=True, head_node_args=head)
    try:
        for number in range(1, nodes):
            with bound_to(cores[number % len(cores)]):
                found.add_node(num_cpus=1)
        ray.init(address=found.address)
        yield found
    finally:
        ray.shutdown()
        found.shutdown()


@contextmanager
def bound_to(core: int) -> Iterator[None]:
    """What is started in the block has one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Disturber(threading.Thread):
    """Kills a worker that has a task every so many seconds, and each third time a node but the head's."""

    def __init__(self, of: Any, seconds: float, kept: Path, seed: int = 0):
        super().__init__(daemon=True)
        self._cluster, self._seconds, self._random = of, seconds, random.Random(seed)
        self._ended, self._kept = threading.Event(), kept

    def run(self) -> None:
        kills = 0
        while not self._ended.wait(self._seconds):
            if kills % 3 == 2 and self._cluster.worker_nodes:
                note(self._kept, "node", task_of(working()))
                node = self._random.choice([*self._cluster.worker_nodes])
                self._cluster.remove_node(node, allow_graceful=False)
                self._cluster.add_node(num_cpus=1)
            elif busy := working():
                worker = self._random.choice(busy)
                note(self._kept, "worker", task_of([worker]))
                worker.kill()
            else:
                continue
            kills += 1

    def end(self) -> None:
        self._ended.set()
        self.join()


def note(kept: Path, what: str, task: str | None) -> None:
    """Add a kill to those that are kept: they outlive a driver that is killed."""
    with open(kept, "a") as file:
        stage = job.STAGE_OF_TASKS.get(task or "")
        file.write(f"{what}, in {stage}\n" if stage else f"{what}, between tasks\n")


def kills_of(kept: Path) -> dict[str, int]:
    """What was killed in which stage → how often."""
    return dict(Counter(kept.read_text().splitlines())) if kept.exists() else {}


def task_of(busy: list[psutil.Process]) -> str | None:
    """The task of the first of these workers that still has one."""
    for one in busy:
        try:
            return one.cmdline()[0].strip().removeprefix("ray::")
        except (psutil.Error, IndexError):
            continue
    return None


def working() -> list[psutil.Process]:
    """Ray's workers on this machine that are in a task, by the commands that they show."""
    found = []
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if command and command[0].strip() in WORKING:
            found.append(process)
    return found


def run(cell: Cell, nodes: int, disturb: float, folder: Path) -> dict[str, Any]:
    """Build the cell's store on a cluster of so many nodes, or go on with it; returns its figures and digests."""
    with cluster(nodes) as found:
        disturber = Disturber(found, disturb, folder / KILLS) if disturb else None
        if disturber:
            disturber.start()
        begun = time.monotonic()
        try:
            figures = job.run(cell, folder)
        finally:
            if disturber:
                disturber.end()
        seconds = time.monotonic() - begun
    found = {"nodes": nodes, "disturbed": bool(disturb), "seconds": seconds, "stages": figures["stages"]}
    store = folder / "store"
    return found | {"digests": {kind: read_manifest(store / kind, kind).digest for kind in STAGES}}


def in_own_process(asked: list[str], work: Path, kills: int, before: list[dict[str, Any]]) -> None:
    """Run one build in a process of its own, as a driver joins one cluster, and kill it so many times on its way.

    Args:
        before: the builds before it; the first one's seconds say how long it will take.
    """
    command = [sys.executable, "-m", "tests.benchmarks.scale.nodes", *asked]
    for _ in range(kills):
        driver = subprocess.Popen(command, start_new_session=True)
        try:
            if driver.wait(before[0]["seconds"] / (kills + 1)):
                raise SystemExit(f"{' '.join(command)} failed.")
            return  # it was sooner
        except subprocess.TimeoutExpired:
            note(work / KILLS, "driver", task_of(working()))
            for process in [*psutil.Process(driver.pid).children(recursive=True), psutil.Process(driver.pid)]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            driver.wait()
    subprocess.run(command, check=True)


def table(found: list[dict[str, Any]]) -> str:
    """Seconds of each stage on each number of nodes, and how many times sooner than on the first."""
    lines = [
        "| stage | " + " | ".join(f"{one['nodes']} nodes" for one in found) + " |",
        "|---|" + "---|" * len(found),
    ]
    for stage in found[0]["stages"]:
        first = found[0]["stages"][stage]["seconds"]
        cells = [
            f"{seconds:.1f} ({first / seconds:.2f})" if seconds > 1 else f"{seconds:.1f}"
            for seconds in (one["stages"].get(stage, {"seconds": 0.0})["seconds"] for one in found)
        ]
        lines.append(f"| {stage} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, required=True, help="where the stores are built, one at a time"
    )
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--passages", type=int, default=16_000)
    parser.add_argument("--clusters", type=int, default=16)
    parser.add_argument("--disturb", type=float, default=0, metavar="SECONDS", help="between kills; 0: none")
    parser.add_argument("--kill-driver", type=int, default=0, metavar="TIMES", help="with --disturb")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    cell = cell_of(options.passages, options.clusters)
    if options.one:
        one = run(cell, options.nodes[0], options.disturb, options.folder)
        return write_atomically(options.json, json.dumps(one))
    rounds = [(nodes, options.disturb) for nodes in options.nodes]
    if options.disturb:
        rounds.insert(0, (options.nodes[0], 0.0))
    found = []
    for nodes, disturb in rounds:
        work, result = options.folder / "work", options.folder / f"nodes-{nodes}.json"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        more = ["--passages", options.passages, "--clusters", options.clusters, "--disturb", disturb]
        asked = ["--folder", work, "--nodes", nodes, *more, "--json", result, "--one"]
        in_own_process([*map(str, asked)], work, options.kill_driver if disturb else 0, found)
        found.append(json.loads(result.read_text()) | {"killed": kills_of(work / KILLS)})
        shutil.rmtree(work)
    print(table(found))
    same = all(one["digests"] == found[0]["digests"] for one in found)
    print("digests:", "the same" if same else "THEY DIFFER", json.dumps(found[0]["digests"]))
    print("killed:", [one["killed"] for one in found])
    write_atomically(
        options.json, json.dumps({"cell": cell.record(), "same_digests": same, "runs": found}, indent=1)
    )
    sys.exit(not same)


if __name__ == "__main__":
    main()
