"""How the progress of a stage is said to people."""

from __future__ import annotations

import re


def artifact_key(*words: str) -> str:
    """A key as Prefect wants it: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower()).strip("-")


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
