"""Arithmetic: what the models of the stages give for 10^9 passages on 1, 8 and 64 nodes. Nothing of it is measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pipeline.passages.build import GROUP_BYTES
from tests.benchmarks.scale.fits import StageModel
from tests.benchmarks.scale.job import (
    CUT,
    DUPLICATES,
    EMBED,
    HASH,
    LEAVES,
    OVERLAP,
    PARTS,
    PIECES,
    SAMPLE,
    SCATTER,
    TREE,
)
from tests.benchmarks.scale.sizes import CHARACTERS

PASSAGES, FILES = 10**9, 100_000
NODES = (1, 8, 64)
NODE_CORES = 64
COARSE = 64
"""The coarse nodes of the usual tree: so many tasks write its partitions."""
Spread = Literal["driver", "node", "tasks"]
_TASKS: tuple[Spread, int | None] = ("tasks", None)
SPREAD: dict[str, tuple[Spread, int | None]] = {
    **dict.fromkeys((PIECES, CUT, DUPLICATES, OVERLAP, PARTS, SAMPLE, SCATTER, HASH), _TASKS),
    LEAVES: ("tasks", COARSE),
    TREE: ("node", None),
}
"""Where a stage works: on all cores, on at most so many, or on those of one node. All others: on one core."""
REQUEST_BYTES = 8 << 20
"""What one request to S3 reads of a corpus."""
LISTED_AT_ONCE = 1000


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a build would take."""

    nodes: int
    hours: dict[str, float]
    """Of each stage."""


def plan(models: Mapping[str, StageModel], nodes: int, *, cores: int = NODE_CORES) -> Plan:
    """The hours of each stage but the encoder.

    Args:
        models: of seconds of one core.
        nodes: how many there are, of `cores` cores each.
    """
    hours = {}
    for name, model in models.items():
        if name == EMBED:
            continue
        spread, most = SPREAD.get(name, ("driver", None))
        share = {"driver": 1, "node": cores, "tasks": nodes * cores}[spread]
        share = min(share, most or share)
        hours[name] = model.seconds(PASSAGES * CHARACTERS, FILES) / share / 3600
    return Plan(nodes=nodes, hours=hours)


def requests() -> dict[str, int]:
    """Requests to S3 for a corpus there: listing it, opening each group's files, counting line ends, and reading."""
    bytes = PASSAGES * CHARACTERS
    return {
        "list": math.ceil(FILES / LISTED_AT_ONCE),
        "open": max(FILES, bytes // GROUP_BYTES),
        "read": bytes // REQUEST_BYTES,
    }
