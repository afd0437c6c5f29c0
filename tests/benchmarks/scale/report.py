"""The cells that are there as tables: what was measured, how it grows, the models, and the arithmetic from them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.benchmarks.scale.extrapolation import (
    FILES,
    NODE_CORES,
    NODES,
    PASSAGES,
    bytes_of,
    disk,
    driver_seconds,
    encoder,
    memory,
    most_disk,
    plan,
    requests,
    what_limits,
)
from tests.benchmarks.scale.fits import Point, StageModel, exponent, fit_stage
from tests.benchmarks.scale.job import CUT, PIECES
from tests.benchmarks.scale.sizes import Cell

LINEAR, FLAT = 1.05, 1.1
"""The largest exponent of a stage, and the largest growth of the driver's memory."""
SHORT = 0.5
"""CPU seconds at the largest store below which an exponent says nothing."""


def read_cells(folder: Path) -> list[dict[str, Any]]:
    """The finished cells, the smallest corpus first."""
    found = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    return sorted(found, key=lambda one: (one["cell"]["kind"], one["bytes"], one["cell"]["files"]))


def summary(cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Exponents, growth of memory, models and plans: all that follows from the cells."""
    stores = [one for one in cells if one["cell"]["kind"] == "store"]
    models = {name: fit_stage(points) for name, points in _points(cells).items() if len(points) > 2}
    planned = models | encoder(cells)
    driver = driver_seconds(stores)
    plans = [plan(planned, nodes, driver_seconds=driver) for nodes in NODES] if models else []
    return {
        "exponents": _exponents(stores),
        "driver_growth": _growth(stores),
        "models": {name: asdict(model) for name, model in models.items()},
        "arithmetic": {
            "passages": PASSAGES,
            "files": FILES,
            "cores_per_node": NODE_CORES,
            "hours": {one.nodes: one.hours for one in plans},
            "what_limits": {one.nodes: what_limits(one) for one in plans},
            "disk_bytes": disk(stores),
            "most_disk_bytes": most_disk(stores),
            "memory_bytes_per_node": memory(stores),
            "requests": requests(),
        },
    }


def _exponents(stores: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    sizes = [one["cell"]["passages"] for one in stores]
    for name in _names(stores) if len(stores) > 1 else ():
        for kind in ("seconds", "cpu_seconds"):
            values = [max(1e-3, one["stages"][name][kind]) for one in stores]
            found.setdefault(name, {})[kind] = exponent(sizes, values)
    return found


def _growth(stores: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The driver's peak memory in each stage: at the largest store over that at the smallest."""
    if not stores:
        return {}
    first, last = stores[0]["stages"], stores[-1]["stages"]
    return {name: last[name]["driver_bytes"] / first[name]["driver_bytes"] for name in _names(stores)}


def _names(cells: Sequence[dict[str, Any]]) -> list[str]:
    """The stages that all cells have, in the order of the walk."""
    return [name for name in cells[0]["stages"] if all(name in one["stages"] for one in cells)]


def _points(cells: Sequence[dict[str, Any]]) -> dict[str, list[Point]]:
    """The measurements of each stage, in CPU seconds: wall time is also that of what else the machine does."""
    points: dict[str, list[Point]] = {}
    for one in cells:
        for name, figures in one["stages"].items() if one["cell"]["kind"] in ("store", "corpus") else ():
            seconds = max(1e-3, figures["cpu_seconds"])
            bytes = bytes_of(name, Cell(**one["cell"]), one["bytes"])
            point = Point(bytes=bytes, files=one["cell"]["files"], seconds=seconds)
            points.setdefault(name, []).append(point)
    return points


def tables(cells: Sequence[dict[str, Any]], found: dict[str, Any]) -> str:
    """Everything as Markdown."""
    return "\n\n".join("\n".join(lines) for lines in _tables(cells, found)) + "\n"


def _tables(cells: Sequence[dict[str, Any]], found: dict[str, Any]) -> Iterator[list[str]]:
    stores = [one for one in cells if one["cell"]["kind"] == "store"]
    corpora = [one for one in cells if one["cell"]["kind"] == "corpus"]
    if stores:
        yield ["Seconds (CPU seconds) of each stage, by passages.", *_by_size(stores, found)]
        yield [
            "Peak memory of the driver and of the largest worker, MB; tasks, and bytes of arguments; the longest "
            "task's part of all tasks' seconds.",
            *_costs(stores),
        ]
    if corpora:
        yield ["Seconds (CPU seconds) by files of the corpus.", *_by_files(corpora)]
    for one in cells:
        if one["additions"]:
            yield ["Seconds of each addition, in order.", *_additions(one)]
    if found["models"]:
        yield [
            "The models: seconds of one core per GB, per 1000 files, and always; the error at the largest point is "
            "that of a model of the others.",
            *_models(found),
        ]
        yield [
            f"**Arithmetic**, not measured: {PASSAGES:,} passages on nodes of {NODE_CORES} cores.",
            *_arithmetic(found),
        ]


def _row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _head(*cells: object) -> list[str]:
    return ["", _row(*cells), "|" + "---|" * len(cells)]


def _spent(figures: dict[str, float] | None) -> str:
    return f"{figures['seconds']:.2f} ({figures['cpu_seconds']:.2f})" if figures else ""


def _by_size(stores: Sequence[dict[str, Any]], found: dict[str, Any]) -> list[str]:
    lines = _head(
        "stage", *(f"{one['cell']['passages']:,}" for one in stores), "exponent", "of CPU", "driver's memory"
    )
    for name in _names(stores):
        slopes = found["exponents"].get(name)
        growth = found["driver_growth"][name]
        short = stores[-1]["stages"][name]["cpu_seconds"] < SHORT
        marks = ["", ""]
        if slopes and not short:
            marks = [f"{slope:.2f}{' !' if slope > LINEAR else ''}" for slope in slopes.values()]
        spent = (_spent(one["stages"][name]) for one in stores)
        lines.append(_row(name, *spent, *marks, f"x {growth:.2f}{' !' if growth > FLAT else ''}"))
    return lines


def _costs(stores: Sequence[dict[str, Any]]) -> list[str]:
    lines = _head("stage", *(f"{one['cell']['passages']:,}" for one in stores))
    for name in _names(stores):
        row = []
        for one in stores:
            figures = one["stages"][name]
            sizes = f"{figures['driver_bytes'] / 1e6:.0f} + {figures['worker_bytes'] / 1e6:.0f}"
            longest = figures.get("longest_task", 0) / max(1e-9, figures.get("tasks_seconds", 0))
            row.append(f"{sizes}; {figures['tasks']:,}, {figures['argument_bytes']:,}; {longest:.0%}")
        lines.append(_row(name, *row))
    kinds = stores[0]["stored"]
    for kind in kinds:
        stored = [one["stored"][kind] for one in stores]
        row = [f"{found['files']:,} files, {found['bytes'] / 1e6:.1f} MB" for found in stored]
        lines.append(_row(f"*{kind}*, as stored", *row))
    return lines


def _by_files(corpora: Sequence[dict[str, Any]]) -> list[str]:
    sizes = [f"{one['cell']['files']:,} of {one['bytes'] / 1e6:.0f} MB" for one in corpora]
    lines = _head("stage", *sizes)
    names = {name: None for one in corpora for name in one["stages"]}
    return [*lines, *(_row(name, *(_spent(one["stages"].get(name)) for one in corpora)) for name in names)]


def _additions(one: dict[str, Any]) -> list[str]:
    seconds = [f"{addition['seconds']:.1f}" for addition in one["additions"]]
    growth = one["additions"][-1]["seconds"] / one["additions"][0]["seconds"]
    return [
        "",
        f"{one['cell']['added']:,} passages each, to {one['cell']['passages']:,}: {', '.join(seconds)} "
        f"(the last over the first: {growth:.2f})",
    ]


def _models(found: dict[str, Any]) -> list[str]:
    lines = _head("stage", "per GB", "per 1000 files", "always", "error at the largest point")
    for name, fields in found["models"].items():
        model = StageModel(**fields)
        error = "" if model.held_out_error is None else f"{model.held_out_error:+.0%}"
        amounts = (model.per_byte * 1e9, model.per_file * 1e3, model.constant)
        lines.append(_row(name, *(f"{amount:.3g}" for amount in amounts), error))
    return lines


def _arithmetic(found: dict[str, Any]) -> list[str]:
    body = found["arithmetic"]
    hours = body["hours"]
    lines = _head("hours", *(f"{nodes} nodes" for nodes in hours))
    for name in next(iter(hours.values())):
        lines.append(_row(name, *(f"{by_stage[name]:.2f}" for by_stage in hours.values())))
    lines.append(_row("**all**", *(f"{sum(by_stage.values()):.1f}" for by_stage in hours.values())))
    lines.append(_row("what limits", *body["what_limits"].values()))
    asked = sum(body["requests"].values())
    reading = [sum(by_stage.get(name, 0) for name in (PIECES, CUT)) for by_stage in hours.values()]
    rates = (f"{asked:,} ({asked / 3600 / max(1e-9, of_reading):.0f}/s)" for of_reading in reading)
    lines.append(_row("requests for a corpus on S3, while it is read", *rates))
    lines.append(_row("disk, TB", *(f"{body['disk_bytes'] / 1e12:.2f}" for _ in hours)))
    lines.append(_row("disk at most, TB", *(f"{body['most_disk_bytes'] / 1e12:.2f}" for _ in hours)))
    lines.append(_row("memory per node, GB", *(f"{body['memory_bytes_per_node'] / 1e9:.0f}" for _ in hours)))
    return lines
