"""One store on clusters of one, two and three Ray nodes: the same digests, and how much sooner each stage is over.

    python -m tests.benchmarks.scale.nodes --folder FOLDER --nodes 1 2 3 --json result.json
    python -m tests.benchmarks.scale.nodes --folder FOLDER --nodes 3 --disturb 20 --json result.json

Nodes are processes of this machine, each bound to one core; the driver is bound to none. More nodes than cores share
them, so that nothing is sooner; their digests count.

`--disturb` builds the store once undisturbed, on the first number of nodes, and then on each with kills: every so many
seconds a worker in its task, each third time a whole node, for which a new one comes, and so many times
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
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
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
    name, files = f"nodes-{passages}", -(-passages // STORE_FILE)
    return Cell(name=name, kind="store", passages=passages, files=files, clusters=clusters, sample=passages)


@contextmanager
def cluster(nodes: int) -> Iterator[Any]:
    """A Ray cluster of `nodes` nodes of one core each, which this process joins as its driver."""
    import ray
    from ray.cluster_utils import Cluster

    cores = sorted(os.sched_getaffinity(0))
    with bound_to(cores[0]):
        found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
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


def disturb_until_over(build: Future[Any], on: Any, seconds: float, kept: Path, seed: int = 0) -> None:
    """Kill a worker that has a task every so many seconds, and each third time a node but the head's.

    The main thread calls this: Ray sets handlers of signals when it starts a node, which no other thread may do.
    """
    kills, chosen = 0, random.Random(seed)
    while not wait([build], seconds).done:
        if kills % 3 == 2 and on.worker_nodes:
            note(kept, "node", task_of(working()))
            replace_node(on, chosen.choice([*on.worker_nodes]))
        elif busy := working():
            kill_worker(chosen.choice(busy), kept)
        else:
            continue
        kills += 1


def replace_node(on: Any, node: Any) -> None:
    """Kill a node, and start a new one on its core."""
    (core,) = os.sched_getaffinity(node.live_processes()[0][1].pid)
    on.remove_node(node, allow_graceful=False)
    start_node(on, core)


def start_node(on: Any, core: int, tries: int = 3) -> None:
    """Start a node on a core, and again if it does not come: a node that is slow to start ends by itself."""
    before = {*on.worker_nodes}
    try:
        with bound_to(core):
            on.add_node(num_cpus=1)
    except Exception:  # Ray has no narrower one, and counts the node already
        for late in {*on.worker_nodes} - before:
            on.remove_node(late, allow_graceful=False)
        if tries == 1:
            raise
        start_node(on, core, tries - 1)


def kill_worker(worker: psutil.Process, kept: Path) -> None:
    """Kill a worker, if it is still there."""
    task = task_of([worker])
    with suppress(psutil.NoSuchProcess):
        worker.kill()
        note(kept, "worker", task)


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
    """Ray's workers below this process that are in a task, by the commands that they show."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            command = process.cmdline()
            if command and command[0].strip() in WORKING:
                found.append(process)
    return found


def run(cell: Cell, nodes: int, disturb: float, folder: Path) -> dict[str, Any]:
    """Build the cell's store on a cluster of so many nodes, or go on with it; returns its figures and digests."""
    with cluster(nodes) as found, ThreadPoolExecutor(1) as thread:
        begun = time.monotonic()
        build = thread.submit(job.run, cell, folder)
        if disturb:
            disturb_until_over(build, found, disturb, folder / KILLS)
        figures = build.result()
        seconds = time.monotonic() - begun
    found = {"nodes": nodes, "disturbed": bool(disturb), "seconds": seconds, "stages": figures["stages"]}
    return found | {"digests": {kind: read_manifest(folder / "store" / kind, kind).digest for kind in STAGES}}


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
    parser.add_argument("--folder", type=Path, required=True, help="where stores are built, one at a time")
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
        figures = json.dumps(run(cell, options.nodes[0], options.disturb, options.folder))
        return write_atomically(options.json, figures)
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
