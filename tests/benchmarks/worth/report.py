"""What the runs say: soups beside their twins of the same seed, at equal tokens and at equal time.

Runs are one group if their names differ only in the seed at the end, as ``soup-0`` and ``soup-1``. Losses between two
points are taken on the line through them over the logarithm of tokens or seconds; beyond the points nothing is said.
CRISP's runs stand beside the soup and the twin of their seed, on their own set.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from storage_schema.errors import UserError
from storage_schema.manifest import write_atomically
from tests.benchmarks.worth.crisp import UNIFORM, Run, beside_crisp, crisp_table, default_of, seed_of, set_of
from tests.benchmarks.worth.sets import METHODS
from tests.benchmarks.worth.training import CURVE

PARTS = "seen", "near", "far", "generic"
COLOURS = dict(zip(METHODS, ("#1f6f8b", "#7aa6b8", "#999999"), strict=True))
TWIN = "#c8823a"


def report(folder: Path) -> dict[str, Any]:
    """Compare the runs below FOLDER/runs; writes report.json, report.md and report.png beside them.

    Raises UserError if there is no soup with a twin of its seed.
    """
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob(f"runs/*/{CURVE}"))]
    generic = [run for run in runs if run["settings"].get("method") == "generic" and run["curve"]]
    twins = {seed_of(run): run for run in generic if set_of(run) is None}
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run["settings"].get("method") != "generic" and seed_of(run) in twins and run["curve"]:
            groups.setdefault(run["settings"]["name"].removesuffix(f"-{seed_of(run)}"), []).append(run)
    if not groups:
        raise UserError(f"{folder / 'runs'} has no soup beside a generic twin of its seed: train both.")
    found = {name: compare(group, [twins[seed_of(run)] for run in group]) for name, group in groups.items()}
    write_atomically(folder / "report.json", json.dumps({"groups": found, "runs": runs}))
    tables = []
    for name, row in found.items():
        row["crisp"] = beside_crisp(generic, groups[name], twins)
        tables += [_table(name, row)] + ([crisp_table(row["crisp"])] if row["crisp"] else [])
    if uniform := [run for run in generic if set_of(run) == UNIFORM and seed_of(run) in twins]:
        tables.append(_uniform_table(uniform, [twins[seed_of(run)] for run in uniform]))
    write_atomically(folder / "report.md", "\n\n".join(tables))
    _picture(groups, twins).savefig(folder / "report.png", dpi=110)
    return found


def compare(soups: list[Run], twins: list[Run]) -> dict[str, Any]:
    """Soups with their twins, in the same order."""
    pairs = [*zip(soups, twins, strict=True)]
    differences = {
        method: {
            part: {
                "equal_tokens": [
                    _summary(values) for values in zip(*_at(pairs, method, part, _tokens), strict=False)
                ],
                "equal_time": [
                    _summary(values) for values in zip(*_at(pairs, method, part, _seconds), strict=False)
                ],
            }
            for part in PARTS
        }
        for method in METHODS
    }
    last = [run["curve"][-1]["losses"] for run in soups]
    default = default_of(soups)
    over: dict[str, dict[str, float]] = {}
    for part in PARTS[:-1]:
        gaps = [
            _mean(row[name][default]) - _mean(row[name]["generic"])
            for row in last
            for name, its in soups[0]["parts"].items()
            if its == part
        ]
        over[part] = {"mean": _mean(gaps), "worst": max(gaps)} if gaps else {}
    return {
        "seeds": [seed_of(run) for run in soups],
        "parameters": soups[0]["parameters"],
        "tokens": [int(_tokens(run)[-1]) for run in soups],
        "seconds": [float(_seconds(run)[-1]) for run in soups],
        "twin_seconds": [float(_seconds(run)[-1]) for run in twins],
        "differences": differences,
        "default": default,
        "default_at_the_end": {
            part: _summary(
                tuple(
                    {
                        "x": _tokens(soup)[-1],
                        "gap": _loss_at(soup, -1, default, part) - _loss_at(twin, -1, "generic", part),
                    }
                    for soup, twin in pairs
                )
            )
            for part in PARTS
        },
        "specialists_over_generic": over,
        "tokens_to_reach_the_twin": {
            part: [_reached(soup, twin, part) for soup, twin in pairs] for part in PARTS
        },
    }


def _at(pairs: list[tuple[Run, Run]], method: str, part: str, along: Any) -> list[list[float | None]]:
    """Of each pair and point of the soup its loss minus the twin's at equal tokens or time; None beyond the twin."""
    found = []
    for soup, twin in pairs:
        xs, of_twin = along(soup), along(twin)
        theirs = np.interp(np.log(xs), np.log(of_twin), losses_of(twin, "generic", part), np.nan, np.nan)
        gaps = losses_of(soup, method, part) - theirs
        found.append([
            None if np.isnan(gap) else {"x": float(x), "gap": float(gap)} for x, gap in zip(xs, gaps, strict=True)
        ])  # fmt: skip
    return found


def _summary(values: tuple[Any, ...]) -> dict[str, Any] | None:
    if None in values:
        return None
    gaps = [value["gap"] for value in values]
    return {
        "at": _mean([value["x"] for value in values]),
        "mean": _mean(gaps),
        "spread": float(np.std(gaps, ddof=1)) if len(gaps) > 1 else None,
        "each": gaps,
    }


def losses_of(run: Run, method: str, part: str) -> np.ndarray:
    """At each point the mean over the part's sets."""
    return np.array([_loss_at(run, point, method, part) for point in range(len(run["curve"]))])


def _loss_at(run: Run, point: int, method: str, part: str) -> float:
    names = [name for name, its in run["parts"].items() if its == part]
    return _mean([_mean(run["curve"][point]["losses"][name][method]) for name in names])


def _reached(soup: Run, twin: Run, part: str) -> float | None:
    """Tokens at which the specialist by `blended` first has the twin's last loss; None: it never has."""
    goal, losses, tokens = (
        losses_of(twin, "generic", part)[-1],
        losses_of(soup, "blended", part),
        _tokens(soup),
    )
    below = np.flatnonzero(losses <= goal)
    if not len(below):
        return None
    at = int(below[0])
    if at == 0:
        return float(tokens[0])
    share = (losses[at - 1] - goal) / (losses[at - 1] - losses[at])
    return float(np.exp(np.log(tokens[at - 1]) + share * np.log(tokens[at] / tokens[at - 1])))


def _table(name: str, row: dict[str, Any]) -> str:
    columns = dict.fromkeys((row["default"], *METHODS))
    lines = [
        f"{name}: {row['parameters']:,} parameters, seeds {', '.join(map(str, row['seeds']))}; last point, nats per "
        "token below (-) or above the twin, mean and spread over seeds",
        "",
        f"| sets | {' | '.join(columns)} | blended at equal time "
        f"| {row['default']} over its generic instance: mean, worst |",
        "|---|" + "---|" * (len(columns) + 2),
    ]
    for part in PARTS:
        at_the_end = {method: row["differences"][method][part]["equal_tokens"][-1] for method in METHODS}
        at_the_end[row["default"]] = row["default_at_the_end"][part]
        cells = [_said(at_the_end[method]) for method in columns]
        timed = [one for one in row["differences"]["blended"][part]["equal_time"] if one]
        over = row["specialists_over_generic"].get(part)
        cells += [
            _said(timed[-1] if timed else None),
            f"{over['mean']:+.3f}, {over['worst']:+.3f}" if over else "",
        ]
        lines.append(f"| {part} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _uniform_table(runs: list[Run], twins: list[Run]) -> str:
    """Last losses of uniform twins minus those of the twins of their seeds."""
    differences = compare(runs, twins)["differences"]["generic"]
    seeds = ", ".join(str(seed_of(run)) for run in runs)
    lines = [f"Uniform twin, seeds {seeds}: below (-) or above the twin.", "", "| sets | loss |", "|---|---|"]
    lines += [f"| {part} | {_said(differences[part]['equal_tokens'][-1])} |" for part in PARTS]
    return "\n".join(lines) + "\n"


def _said(one: dict[str, Any] | None) -> str:
    if one is None:
        return "not measured"
    return f"{one['mean']:+.3f}" + ("" if one["spread"] is None else f" ± {one['spread']:.3f}")


def _picture(groups: dict[str, list[Run]], twins: dict[int, Run]) -> Figure:
    """For each group a row: the losses of each part by tokens, one line for each seed."""
    figure = Figure(figsize=(13, 0.6 + 3.0 * len(groups)), layout="constrained")
    rows = figure.subplots(len(groups), len(PARTS), squeeze=False)
    for (name, soups), row in zip(groups.items(), rows, strict=True):
        for part, axes in zip(PARTS, row, strict=True):
            for number, soup in enumerate(soups):
                twin = twins[seed_of(soup)]
                for method, colour in COLOURS.items():
                    losses = losses_of(soup, method, part)
                    axes.plot(_tokens(soup), losses, "o-", ms=3, color=colour, label="" if number else method)
                losses = losses_of(twin, "generic", part)
                axes.plot(_tokens(twin), losses, "s--", ms=3, color=TWIN, label="" if number else "twin")
            axes.set(title=f"{name}: {part}", xlabel="tokens", xscale="log")
            axes.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel("nats per token")
        row[0].legend(frameon=False, fontsize=8)
    return figure


def _mean(values: Any) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _tokens(run: Run) -> np.ndarray:
    return np.array([row["step"] for row in run["curve"]]) * run["tokens_per_step"]


def _seconds(run: Run) -> np.ndarray:
    return np.array([row["seconds"] for row in run["curve"]])
