"""How the progress of a stage, and tables of numbers, are said to people."""

from __future__ import annotations

import re
from typing import Any


def artifact_key(*words: str) -> str:
    """A key as Prefect wants it: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower()).strip("-")


def run_key(method: str, name: str) -> str:
    """The key of a run's card, while it trains and at its end; `name` may be a folder."""
    return artifact_key(method, name.rstrip("/").rpartition("/")[2])


def percent_of(progress: dict) -> float:
    """Percent done, 0 while the total is unknown."""
    return round(100 * min(progress["done"] / progress["total"], 1), 1) if progress["total"] else 0.0


def describe(progress: dict) -> str:
    """``embed passages: 1,200 of 26,000 passages``."""
    return f"{progress['stage']}: {amount(progress)}"


def amount(progress: dict) -> str:
    """``1,200 of 26,000 passages (a note)``; without ``of ...`` while the total is unknown."""
    of = f" of {progress['total']:,}" if progress["total"] else ""
    note = f" ({progress['note']})" if progress.get("note") else ""
    return f"{progress['done']:,}{of} {progress['unit']}{note}"


def number(value: Any) -> str:
    """``1,234`` or ``0.1235``; anything but a number as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
