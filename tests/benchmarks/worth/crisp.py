"""Models trained on one fixed mixture, beside the soup: CRISP, on a set's own mixture, and the uniform twin.

A soup's `sparse` law draws all domains alike often, and its twin reads each by its size. The uniform twin reads as the
soup does, and so says how much of a difference comes from that alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.mixtures.ratios import write_fixed
from soe_model.specialists.refining import REFINED
from storage_schema.errors import UserError
from tests.benchmarks.worth.sets import Sets

Run = dict[str, Any]
UNIFORM = "uniform"
"""Stands for a set, and means the mixture of all domains that hold text alike."""


def crisp_settings(name: str, sets: Sets, folder: Path) -> dict[str, Any]:
    """Settings of pretrain-soe that train on the mixture of the set `name`, or `UNIFORM`; written below `folder`.

    Raises UserError if there is no such set.
    """
    known = {one.name: at.domain_weights for one, at in zip(sets.sets, sets.assignments, strict=True)}
    with_text_K = sets.generic_K > 0
    known[UNIFORM] = with_text_K / with_text_K.sum()
    if name not in known:
        raise UserError(f"no set {name!r}; there are {', '.join(sorted(known))}.")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.csv"
    write_fixed(known[name], path, run=name)
    return {"method": "generic", "meta_distribution": "fixed", "ratios": str(path)}


def set_of(run: Run) -> str | None:
    """The set that a run is CRISP for, or `UNIFORM`; None: it is a soup or a twin."""
    fixed = run["settings"].get("meta_distribution") == "fixed"
    return Path(run["settings"]["ratios"]).stem if fixed else None


def beside_crisp(runs: list[Run], soups: list[Run], twins: Mapping[int, Run]) -> list[dict[str, Any]]:
    """For each set and seed with a CRISP run, a soup and a twin: the last losses of the three.

    CRISP trains on Algorithm 3's weights, so the soup's specialist of these stands beside the default one.
    """
    of_seed = {seed_of(run): run for run in soups}
    found = []
    for run in runs:
        name, seed = set_of(run), seed_of(run)
        if name in (None, UNIFORM) or not run["curve"] or seed not in of_seed or seed not in twins:
            continue
        asked = {
            "twin": (twins[seed], "blended"),
            "soup": (of_seed[seed], default_of([of_seed[seed]])),
            "algorithm 3": (of_seed[seed], "nearest-centroids"),
            "crisp": (run, "blended"),
        }
        last = {who: one["curve"][-1]["losses"][name][method] for who, (one, method) in asked.items()}
        found.append(
            {"set": name, "part": run["parts"][name], "seed": seed}
            | {who: float(np.mean(losses)) for who, losses in last.items()}
        )
    return sorted(found, key=lambda row: (row["part"], row["set"], row["seed"]))


def crisp_table(rows: list[dict[str, Any]]) -> str:
    """The losses as a table, with the share of CRISP's gain over the twin that the soup has."""
    lines = [
        "| set | part | seed | twin | soup's default | Algorithm 3 | CRISP | default's share of CRISP's gain |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        gain = row["twin"] - row["crisp"]
        share = f"{(row['twin'] - row['soup']) / gain:.0%}" if gain > 0 else "CRISP gains nothing"
        losses = " | ".join(f"{row[who]:.3f}" for who in ("twin", "soup", "algorithm 3", "crisp"))
        lines.append(f"| {row['set']} | {row['part']} | {row['seed']} | {losses} | {share} |")
    return "\n".join(lines) + "\n"


def default_of(runs: list[Run]) -> str:
    """The default method, `refined`, if all runs were measured so, and `blended` if not."""
    measured = all(REFINED in run["curve"][-1]["losses"]["generic"] for run in runs)
    return REFINED if measured else "blended"


def seed_of(run: Run) -> int:
    return run["settings"].get("seed", 0)
