"""The comparison as one HTML page, with its data and plotly.js inside, which needs no network."""

from __future__ import annotations

import re
from datetime import timedelta
from html import escape
from pathlib import Path
from typing import Any

from flows.atlas.page import embedded_json, hash_source
from flows.comparison.fine_tuning import LEARNING
from flows.comparison.report.choices import table as choices_table
from flows.comparison.report.figures import NOT_HERE
from flows.comparison.report.surface import said
from flows.comparison.sets import KINDS
from storage_schema.manifest import write_atomically

FILES = Path(__file__).parent
COLOURS = FILES.parents[1] / "atlas/shared/colours.css"
WORDS = {
    "seen": "held-out texts of sources that were trained on",
    "unseen": "sources of which nothing was trained on",
    "far": "texts far from every domain of the store",
    "generic": "held-out texts of all sources",
}


FIGURES_BEGIN = """<h2>The paper's figures, here</h2>
<p class="dim">Less loss is better. ± is half of a 90 % interval around the mean of the differences by seed (Student's
t). A difference that lies within it is not sure, and the sentence says so.</p>"""


def write_page(path: Path, report: dict[str, Any]) -> None:
    """Write the page of a report (:func:`flows.comparison.report.results.collect`)."""
    write_atomically(path, page(report))


def page(report: dict[str, Any]) -> str:
    """The page's HTML."""
    from plotly.offline import get_plotlyjs

    scripts = {"PLOTLY": get_plotlyjs(), "SCRIPT": (FILES / "page.js").read_text("utf-8")}
    shown = {
        "sets": report["sets"],
        "rows": [
            {
                "method": row["method"],
                "curve": row["curve"],
                "by_set": row["by_set"],
                "tuned": row["fine_tuning"]["curve"],
            }
            for row in report["rows"]
            if row["seeds"]
        ],
        "surface": report.get("surface"),
        "by_number": report.get("by_number", {}),
    }
    parts = scripts | {
        "STYLE": COLOURS.read_text("utf-8") + (FILES / "page.css").read_text("utf-8"),
        "NAME": escape(report["name"]),
        "SUMMARY": escape(_summary(report)),
        "ANSWER": "".join(f"<p>{escape(line)}</p>" for line in report["answer"]),
        "TABLE": table(report),
        "NOTES": _notes(report),
        "CHOICES": choices_table(report.get("multiple_choice")),
        "TEXT_NOTES": _text_notes(report),
        "FIGURES": _figures(report),
        "FINE_TUNING": _fine_tuning(report),
        "KINDS": "".join(
            f"<dt>{kind}</dt><dd>{words}</dd>" for kind, words in WORDS.items() if kind in _kinds(report)
        ),
        "BY_NUMBER": "".join(_by_number(*one) for one in report.get("by_number", {}).items()),
        "SURFACE": _surface(report.get("surface")),
        "REPEAT": escape(report["repeat"]),
        "DATA": embedded_json(shown),
        "SCRIPT_HASHES": " ".join(map(hash_source, scripts.values())),
    }
    html = (FILES / "page.html").read_text("utf-8")
    return re.sub(r"\{\{([A-Z_]+)\}\}", lambda mark: parts[mark[1]], html)


def _by_number(name: str, found: dict[str, Any]) -> str:
    """A chart of losses by a number (by_number.py)."""
    title = escape(found["title"])
    return f"""<h2>{title}</h2>
<p class="dim">{escape(found["said"])}</p>
<div id="by-{escape(name)}" class="chart" role="img" aria-label="{title}"></div>
"""


def _surface(surface: dict[str, Any] | None) -> str:
    """The chart of the mixtures, with each method's ranks in words; empty where no mixtures were trained on."""
    if surface is None:
        return ""
    ranks = "; ".join(
        f"{one['method']} {said(one)}, first {one['regret']:.3f} nats above the best"
        for one in surface["ranked"]
    )
    count = f"{len(surface['mixtures'])} of {surface['of']}"
    return f"""<h2>Do the losses of a soup rank mixtures?</h2>
<p class="dim">{count} random mixtures, with a model trained on each. A point is a mixture and a set: the loss of the
first method's model of the mixture, above its mean over mixtures, and that of the trained model (± over seeds).
Spearman's rank correlation, mean over sets and seeds, ± its bootstrap error over mixtures: {escape(ranks)}.</p>
<div id="surface" class="chart" role="img" aria-label="Losses of trained models by those of the soup"></div>"""


def _summary(report: dict[str, Any]) -> str:
    seeds = report["seeds"]
    return (
        f"Store {report['store']}, preset {report['preset']}, {report['tokens']:,} tokens for each method and seed, "
        f"{len(seeds)} seed{'s' * (len(seeds) > 1)}, {sum(one['kind'] != 'generic' for one in report['sets'])} sets."
    )


def _kinds(report: dict[str, Any]) -> list[str]:
    return [kind for kind in KINDS if any(one["kind"] == kind for one in report["sets"])]


def table(report: dict[str, Any]) -> str:
    """The table as HTML: one row for each method."""
    kinds = _kinds(report)
    heads = [
        "method",
        *(f"loss, {kind}" for kind in kinds),
        "tokens", "FLOPs", "training", "to a specialist", "stored", "served", "per token",
    ]  # fmt: skip
    best = {
        kind: min((row["losses"][kind]["mean"] for row in report["rows"] if _has(row, kind)), default=None)
        for kind in kinds
    }
    lines = [
        "<thead><tr>" + "".join(f'<th scope="col">{head}</th>' for head in heads) + "</tr></thead><tbody>"
    ]
    for row in report["rows"]:
        cells = [f'<th scope="row">{escape(row["method"])}</th>']
        if not row["seeds"]:
            cells.append(
                f'<td class="said" colspan="{len(heads) - 1}">{escape("; ".join(row["notes"]))}</td>'
            )
        else:
            cells += [_loss(row, kind, best[kind]) for kind in kinds]
            cells += [f"<td>{value}</td>" for value in _costs(row)]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return "".join(lines) + "</tbody>"


def _has(row: dict[str, Any], kind: str) -> bool:
    return bool(row.get("losses", {}).get(kind))


def _loss(row: dict[str, Any], kind: str, best: float | None) -> str:
    if not _has(row, kind):
        return '<td class="none">none</td>'
    loss = row["losses"][kind]
    mark = ' class="best"' if loss["mean"] == best else ""
    spread = "" if loss["sd"] is None else f" <span>± {loss['sd']:.3f}</span>"
    return f"<td{mark}>{loss['mean']:.3f}{spread}</td>"


def _costs(row: dict[str, Any]) -> list[str]:
    each = " each" if row["anew"] else ""
    return [
        short(row["tokens"]),
        f"{row['flops']:.2e}",
        str(timedelta(seconds=round(row["seconds"]))),
        seconds(row["seconds_to_specialist"]),
        short(row["stored"]) + each,
        short(row["served"]) + (f", {short(row['active'])} active" if row["active"] else ""),
        f"{1e3 * row['seconds_per_token']:.3f} ms",
    ]


def short(number: float) -> str:
    """1,234,567 → 1.23 M."""
    for size, letter in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:g}"


def seconds(number: float) -> str:
    """2.5 ms, 3.2 s, 0:05:10."""
    if number < 1:
        return f"{1e3 * number:.3g} ms"
    return f"{number:.3g} s" if number < 120 else str(timedelta(seconds=round(number)))


def _notes(report: dict[str, Any]) -> str:
    notes = [f"{row['method']}, {note}" for row in report["rows"] if row["seeds"] for note in row["notes"]]
    return f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in notes)}</ul>" if notes else ""


def _text_notes(report: dict[str, Any]) -> str:
    """What was passed over of the sets' texts, and the like."""
    notes = [f"{one['name']}: {note}" for one in report["sets"] for note in one.get("notes", ())]
    said = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<ul class="texts" aria-label="Of the texts">{said}</ul>' if notes else ""


def _figures(report: dict[str, Any]) -> str:
    """Whether each figure of the paper came out here; none for a report of earlier days."""
    found = report.get("figures", [])
    said = "".join(
        f'<li class="{"there" if one["verdict"] != NOT_HERE else "not"}">{escape(one["said"])}</li>'
        for one in found
    )
    return f'{FIGURES_BEGIN}<ul class="figures">{said}</ul>' if found else ""


def _fine_tuning(report: dict[str, Any]) -> str:
    """The section of fine-tuning; none where nothing was fine-tuned."""
    if not report["fine_tuning"]:
        return ""
    return (
        "<h2>Loss after fine-tuning</h2>"
        + "".join(f"<p>{escape(line)}</p>" for line in report["fine_tuning"])
        + '<p class="dim">Mean over the sets. Each model learns from so many tokens of its set, by the number anew and '
        f"at most {LEARNING.steps} steps, stops early by a fifth of them, of other documents, and is measured on other "
        "texts.</p>"
        '<div id="fine-tuning" class="chart" role="img" aria-label="Mean loss by tokens of fine-tuning"></div>'
    )
