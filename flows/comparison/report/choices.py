"""What models answer in multiple choice: accuracy and margin of each task, with intervals, and chance beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from statistics import fmean
from typing import Any

import torch

from flows.comparison.after_training.big_bench import Task
from flows.comparison.report.by_number import SOUP
from soe_model.specialists.evaluation import bootstrap_interval


def collect(tasks: Sequence[Task], answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """``tasks`` with their chance, and a row for each method, a soup first: by task ``right`` and ``margin``, each its
    mean and 90% interval over questions (each the mean over seeds), and ``by_seed``, the accuracy over all tasks.
    """
    labels = sorted({one["method"] for one in answers}, key=lambda label: (label != SOUP, label))
    return {
        "tasks": [
            {
                "name": task.name,
                "questions": len(task.questions),
                "chance": fmean(1 / len(choices) for choices in task.choices),
            }
            for task in tasks
        ],
        "rows": [_row(label, tasks, [one for one in answers if one["method"] == label]) for label in labels],
        "answers": list(answers),
    }


def _row(label: str, tasks: Sequence[Task], answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "method": label,
        "by_task": {
            task.name: {
                what: _interval([one["by_task"][task.name][what] for one in answers])
                for what in ("right", "margin")
            }
            for task in tasks
        },
        "by_seed": {
            str(one["seed"]): fmean(fmean(one["by_task"][task.name]["right"]) for task in tasks)
            for one in answers
        },
    }


def _interval(of_seeds: Sequence[Sequence[float]]) -> dict[str, float]:
    values_n = torch.tensor(of_seeds, dtype=torch.float64).mean(0)
    low, high = bootstrap_interval(values_n)
    return {"mean": values_n.mean().item(), "low": low, "high": high}


def by_seed(found: Mapping[str, Any] | None, label: str) -> dict[int, float]:
    """The accuracy of a method over all tasks."""
    rows = [] if found is None else found["rows"]
    return {
        int(seed): right for row in rows if row["method"] == label for seed, right in row["by_seed"].items()
    }


def table(found: Mapping[str, Any] | None) -> str:
    """The section of the page; empty where nothing was asked."""
    if found is None:
        return ""
    heads = "".join(f'<th scope="col">{escape(row["method"])}</th>' for row in found["rows"])
    lines = []
    for task in found["tasks"]:
        cells = "".join(f"<td>{_said(row['by_task'][task['name']])}</td>" for row in found["rows"])
        lines.append(
            f'<tr><th scope="row">{escape(task["name"])}</th><td>{task["questions"]}</td>'
            f"<td>{task['chance']:.0%}</td>{cells}</tr>"
        )
    return f"""<h2>Multiple choice</h2>
<p class="dim">Tasks of BIG-bench, answered without examples by the log-likelihood of each choice, through
lm-evaluation-harness; ARC and MMLU, which the paper has, could not be had. Other questions of the task gave the domain
weights. Right answers, and the margin: the log-likelihood of the right choice above the best of the others, in nats. In
brackets 90 % intervals over questions.</p>
<div class="scroll" tabindex="0" role="region" aria-label="Multiple choice"><table>
<thead><tr><th scope="col">task</th><th scope="col">questions</th><th scope="col">chance</th>{heads}</tr></thead>
<tbody>{"".join(lines)}</tbody></table></div>
"""


def _said(of_task: Mapping[str, Mapping[str, float]]) -> str:
    right, margin = of_task["right"], of_task["margin"]
    return (
        f"{right['mean']:.1%} <span>({right['low']:.1%} to {right['high']:.1%})</span><br>"
        f"{margin['mean']:.2f} <span>({margin['low']:.2f} to {margin['high']:.2f})</span>"
    )
