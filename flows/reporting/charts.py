"""The pictures of a run: sizes of domains, loss curves, whether the bank specialises, losses of the specialist sets."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

_SOUP, _GENERIC, _GREY = "#1f6f8b", "#c8823a", "#777777"


def domain_sizes(tokens_K: Sequence[int]) -> Figure:
    """Tokens of each domain, the largest first, and as a line the size that equal domains would have."""
    figure, axes = _axes(7.0, 2.8)
    ordered = sorted(tokens_K, reverse=True)
    axes.stairs(ordered, fill=True, color=_SOUP)
    axes.axhline(sum(ordered) / max(len(ordered), 1), color=_GREY, linewidth=1, linestyle="--")
    axes.set(xlabel="domains, the largest first", ylabel="tokens", xlim=(0, max(len(ordered), 1)), ylim=0)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    return figure


def loss_curve(steps: Sequence[float], losses: Sequence[float]) -> Figure:
    """Training loss by step, with its moving average over a fiftieth of the run."""
    figure, axes = _axes(7.0, 3.2)
    axes.plot(steps, losses, color=_SOUP, linewidth=0.6, alpha=0.35)
    width = max(1, len(losses) // 50)
    smooth = [
        sum(losses[max(0, i - width) : i + 1]) / (i + 1 - max(0, i - width)) for i in range(len(losses))
    ]
    axes.plot(steps, smooth, color=_SOUP, linewidth=1.6)
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    return figure


def specialisation(rows: Sequence[dict[str, float]]) -> Figure:
    """Whether the bank specialises, by step: the rows of the log that say it (soe_model/training/specialisation.py)."""
    figure, axes = _by_step(
        rows,
        ("coefficient_spread", "spread of the coefficients", _SOUP),
        ("instance_spread", "spread of the instances", _GENERIC),
        ("expert_cosine", "mean |cos| of two experts", _GREY),
    )
    axes.set(ylim=0)
    return figure


def instance_losses(rows: Sequence[dict[str, float]]) -> Figure:
    """Loss of the same few windows by step, under their mixtures' own instances and under the generic one."""
    figure, axes = _by_step(
        rows,
        ("generic_instance_loss", "under the generic instance", _GENERIC),
        ("own_instance_loss", "under their mixtures' own instances", _SOUP),
    )
    axes.set(ylabel="loss (nats per token)")
    return figure


def of_log(rows: Sequence[dict[str, float]]) -> list[str]:
    """A run's log in Markdown: its loss and, of a soup, whether the bank specialises."""
    steps, losses = ([row[name] for row in rows] for name in ("step", "loss"))
    shown = [as_markdown(loss_curve(steps, losses), "training loss by step")]
    if measured := [row for row in rows if "expert_cosine" in row]:
        shown += [
            as_markdown(specialisation(measured), "whether the bank specialises, by step"),
            "A bank specialises where the spreads are large and the cosine is small: coefficients and instances then "
            "differ between mixtures, and the experts do not all point one way.",
        ]
    if measured := [row for row in rows if "own_instance_loss" in row]:
        shown += [
            as_markdown(instance_losses(measured), "losses of fixed windows, by step"),
            "The windows are the last step's. The distance of the two curves is what the instances gain on their own "
            "mixtures' text.",
        ]
    return shown


def specialist_losses(sets: Sequence[dict[str, Any]]) -> Figure:
    """The loss of the generic twin and of the specialist on each set; the best specialists on top.

    The names of sources that the corpus does not hold are bold.
    """
    ordered = sorted(sets, key=lambda s: s["generic_loss"] - s["soup_loss"])
    rows = range(len(ordered))
    figure, axes = _axes(7.0, 1.1 + (0.32 if len(ordered) <= 16 else 0.2) * len(ordered))
    for row, one in zip(rows, ordered, strict=True):
        axes.plot([one["generic_loss"], one["soup_loss"]], [row, row], color=_GREY, linewidth=1, zorder=1)
    axes.scatter([s["generic_loss"] for s in ordered], rows, color=_GENERIC, label="generic twin", zorder=2)
    axes.scatter(
        [s["soup_loss"] for s in ordered], rows, color=_SOUP, label="specialist of the soup", zorder=3
    )
    axes.set_yticks(rows, [s["name"] for s in ordered])
    axes.margins(y=0.6 / len(ordered))
    bold = [one.get("unseen_source", False) for one in ordered]
    for label, unseen in zip(axes.get_yticklabels(), bold, strict=True):
        label.set(weight="bold" if unseen else "normal", size=9)
    which = "\nbold: sources that the corpus does not hold" if any(bold) else ""
    axes.set(xlabel=f"loss on held-out text (nats per token; less is better){which}")
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, 1.0 + 0.6 / figure.get_figheight()), ncols=2, frameon=False
    )
    return figure


def as_markdown(figure: Figure, text: str) -> str:
    """The picture inside a Markdown text, as a data URI: Prefect stores it with the artifact."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return f"![{text}](data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()})"


def _by_step(rows: Sequence[dict[str, float]], *series: tuple[str, str, str]) -> tuple[Figure, Any]:
    """Numbers of the log by step, each as a line: its name in the rows, its label and its colour."""
    figure, axes = _axes(7.0, 2.8)
    steps = [row["step"] for row in rows]
    for name, label, color in series:
        axes.plot(steps, [row[name] for row in rows], color=color, marker=".", linewidth=1.4, label=label)
    axes.set(xlabel="step")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(series), frameon=False)
    return figure, axes


def _axes(width: float, height: float) -> tuple[Figure, Any]:
    """An empty picture of so many inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="both", color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes
