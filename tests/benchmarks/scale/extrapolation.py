"""Arithmetic: what the models of the stages give for 10^9 passages on 1, 8 and 64 nodes. Nothing of it is measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from flows.settings import BuildDomains
from pipeline.passages.build import GROUP_BYTES
from tests.benchmarks.scale.fits import StageModel
from tests.benchmarks.scale.job import (
    CUT,
    DUPLICATES,
    EMBED,
    ENCODER,
    HASH,
    LEAVES,
    OVERLAP,
    PARTS,
    PIECES,
    SAMPLE,
    SCATTER,
    TRAIN,
    TREE,
)
from tests.benchmarks.scale.sizes import CHARACTERS, Cell

PASSAGES, FILES = 10**9, 100_000
NODES = (1, 8, 64)
NODE_CORES = 64
DEFAULTS = BuildDomains()
COARSE = DEFAULTS.coarse_clusters
"""So many tasks write the partitions, and fit the leaves."""
Spread = Literal["driver", "tasks"]
_TASKS: tuple[Spread, int | None] = ("tasks", None)
SPREAD: dict[str, tuple[Spread, int | None]] = {
    **dict.fromkeys((PIECES, CUT, DUPLICATES, OVERLAP, PARTS, SAMPLE, SCATTER, HASH, ENCODER), _TASKS),
    LEAVES: ("tasks", COARSE),
    TREE: ("tasks", COARSE),
}
"""Where a stage works: on all cores, or on at most so many. All others: on one core."""
SUBMITTING = "submitting tasks"
"""What the driver spends on each task, whatever the task does."""
REQUEST_BYTES = 8 << 20
"""What one request to S3 reads of a corpus."""
LISTED_AT_ONCE = 1000


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a build would take."""

    nodes: int
    hours: dict[str, float]
    """Of each stage."""


def bytes_of(stage: str, cell: Cell, bytes: float) -> float:
    """The bytes of text that the work of a stage grows with: all, or those of its sample."""
    if stage == TRAIN:
        return min(bytes, cell.characters)
    if stage == TREE:
        return min(bytes, cell.clusters * cell.sample * CHARACTERS)
    return bytes


USUAL = Cell(
    name="usual",
    kind="store",
    passages=PASSAGES,
    files=FILES,
    clusters=COARSE,
    sample=DEFAULTS.kmeans_sample,
    characters=DEFAULTS.tokenizer_sample_characters,
)
"""What is planned: 10^9 passages with the default settings."""


def plan(
    models: Mapping[str, StageModel], nodes: int, *, cores: int = NODE_CORES, driver_seconds: float = 0.0
) -> Plan:
    """The hours of each stage.

    Args:
        models: of seconds of one core; the encoder's too, where it was measured.
        nodes: how many there are, of `cores` cores each.
        driver_seconds: what the driver spends on the tasks.
    """
    hours = {}
    for name, model in models.items():
        if name == EMBED:
            continue
        spread, most = SPREAD.get(name, ("driver", None))
        share = {"driver": 1, "tasks": nodes * cores}[spread]
        share = min(share, most or share)
        seconds = model.seconds(bytes_of(name, USUAL, PASSAGES * CHARACTERS), FILES)
        hours[name] = seconds / share / 3600
    if driver_seconds:
        hours[SUBMITTING] = driver_seconds / 3600
    return Plan(nodes=nodes, hours=hours)


def what_limits(of: Plan) -> str:
    """The stage that takes longest, and what would shorten it."""
    name = max(of.hours, key=lambda stage: of.hours[stage])
    spread, most = SPREAD.get(name, ("driver", None))
    if spread == "driver":
        return f"{name} (one process)"
    return f"{name} ({'cores' if most is None or most > of.nodes * NODE_CORES else f'{most} tasks'})"


def requests() -> dict[str, int]:
    """Requests to S3 for a corpus there: listing it, opening each group's files, counting line ends, and reading.

    Counted from the code, not measured. All but the listing fall into the stages PIECES and CUT.
    """
    bytes = PASSAGES * CHARACTERS
    large = bytes if bytes / FILES > 2 * GROUP_BYTES else 0
    return {
        "list": math.ceil(FILES / LISTED_AT_ONCE),
        "open": max(FILES, bytes // GROUP_BYTES),
        "count line ends": large // REQUEST_BYTES,
        "read": bytes // REQUEST_BYTES,
    }


def encoder(cells: Sequence[dict[str, Any]]) -> dict[str, StageModel]:
    """The real encoder at the rate of its one cell; empty where there is none."""
    for one in cells:
        if one["cell"]["kind"] == "encoder":
            seconds = one["stages"][ENCODER]["cpu_seconds"] / (one["cell"]["passages"] * CHARACTERS)
            return {ENCODER: StageModel(per_byte=seconds, per_file=0, constant=0)}
    return {}


def driver_seconds(stores: Sequence[dict[str, Any]]) -> float:
    """What the driver spends on the tasks of 10^9 passages: of the largest store's as many more, each as an empty
    one."""
    if not stores or "seconds_of_a_task" not in stores[-1]:
        return 0.0
    tasks = sum(figures["tasks"] for figures in stores[-1]["stages"].values())
    return float(tasks * stores[-1]["seconds_of_a_task"] * PASSAGES / stores[-1]["cell"]["passages"])


def most_disk(stores: Sequence[dict[str, Any]]) -> float:
    """As :func:`disk`, with what is there for a while only, and the corpus."""
    if not stores:
        return 0
    return float(stores[-1].get("most_disk_bytes", 0) * PASSAGES / stores[-1]["cell"]["passages"])


def disk(stores: Sequence[dict[str, Any]]) -> float:
    """Bytes of a store of 10^9 passages, as the largest one's grow; without scratch."""
    if not stores:
        return 0
    largest = stores[-1]
    return sum(kind["bytes"] for kind in largest["stored"].values()) * PASSAGES / largest["cell"]["passages"]


def memory(stores: Sequence[dict[str, Any]]) -> float:
    """The driver, and the largest worker of any stage on each core."""
    if not stores:
        return 0
    stages = stores[-1]["stages"].values()
    workers = max(figures["worker_bytes"] for figures in stages)
    return max(figures["driver_bytes"] for figures in stages) + NODE_CORES * workers
