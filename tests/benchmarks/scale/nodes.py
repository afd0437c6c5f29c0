"""One store on clusters of one, two and three Ray nodes: the same digests, and how much sooner each stage is over.

    python -m tests.benchmarks.scale.nodes --folder FOLDER --nodes 1 2 3 --json result.json
    python -m tests.benchmarks.scale.nodes --folder FOLDER --nodes 3 --disturb 20 --json result.json

Nodes are processes of this machine, each bound to one core; the driver is bound to none. More nodes than cores share
them, so that nothing is sooner; their digests count.

`--disturb` builds the store once undisturbed, on the first number of nodes, and then on each with kills: every so many
seconds a worker in its task, each third time a whole node, for which a new one comes, and so many times
(`--kill-driver`) the driver with its cluster, after which the same command goes on. With `--stages` all kills fall in
these, and `--kill-driver 1` kills the driver once in each that is seen. Of each kill the stage is kept. (Manifests have
tasks only where there is more than a gigabyte to hash.)
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
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from storage_schema.manifest import read_manifest, write_atomically
from tests.benchmarks.scale import job
from tests.benchmarks.scale.disturbing import (
    LOOK_SECONDS,
    disturb_until_over,
    kill_driver,
    kills_of,
    task_of,
    working,
)
from tests.benchmarks.scale.sizes import STORE_FILE, Cell

KILLS = "kills.txt"
STAGES = "passages", "tokenizer", "embeddings", "domains"


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


def replace_node(on: Any, chosen: random.Random) -> None:
    """Kill a node that is not the head's, and start a new one on its core."""
    node = chosen.choice([*on.worker_nodes])
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


def run(cell: Cell, nodes: int, disturb: float, stages: Collection[str], folder: Path) -> dict[str, Any]:
    """Build the cell's store on a cluster of so many nodes, or go on with it; returns its figures and digests."""
    with cluster(nodes) as found, ThreadPoolExecutor(1) as thread:
        begun = time.monotonic()
        build = thread.submit(job.run, cell, folder)
        if disturb:
            replace = partial(replace_node, found, random.Random(0)) if nodes > 1 else None
            disturb_until_over(build, replace, disturb, folder / KILLS, stages)
        figures = build.result()
        seconds = time.monotonic() - begun
    found = {"nodes": nodes, "disturbed": bool(disturb), "seconds": seconds, "stages": figures["stages"]}
    return found | {"digests": {kind: read_manifest(folder / "store" / kind, kind).digest for kind in STAGES}}


def in_own_process(
    asked: list[str], work: Path, times: int, seconds: float, stages: Collection[str] = ()
) -> None:
    """Run one build in a process of its own, as a driver joins one cluster, and kill it on its way.

    Args:
        times: how often it is killed; with `stages`: in each of these once, when a task of it is seen, or not at all.
        seconds: each time after so many.
    """
    command = [sys.executable, "-m", "tests.benchmarks.scale.nodes", *asked]
    left = {*stages} if times else set()
    times = len(left) or times
    for _ in range(times):
        driver = subprocess.Popen(command, start_new_session=True)
        begun = time.monotonic()
        while driver.poll() is None:
            seen = job.STAGE_OF_TASKS.get(task_of(working(left)) or "") if left else None
            if seen in left or (not left and time.monotonic() - begun > seconds):
                left -= {seen}
                kill_driver(psutil.Process(driver.pid), work / KILLS)
                driver.wait()
                break
            time.sleep(LOOK_SECONDS)
        else:
            if driver.returncode:
                raise SystemExit(f"{' '.join(command)} failed.")
            return  # it was sooner
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
    stages = sorted({*job.STAGE_OF_TASKS.values()})
    parser.add_argument(
        "--stages", nargs="+", default=[], choices=stages, help="with --disturb: only in these"
    )
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    cell = cell_of(options.passages, options.clusters)
    if options.one:
        figures = json.dumps(run(cell, options.nodes[0], options.disturb, options.stages, options.folder))
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
        more += ["--stages", *options.stages] if options.stages else []
        asked = ["--folder", work, "--nodes", nodes, *more, "--json", result, "--one"]
        times = options.kill_driver if disturb else 0
        seconds = found[0]["seconds"] / (times + 1) if times else 0
        in_own_process([*map(str, asked)], work, times, seconds, options.stages)
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
