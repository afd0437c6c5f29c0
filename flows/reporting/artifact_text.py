"""How a progress line is written on a Prefect progress artifact, and read back from it."""

from __future__ import annotations

import re

_DESCRIPTION = re.compile(
    r"(?P<stage>.*): (?P<done>[\d,]+)( of (?P<total>[\d,]+))? (?P<unit>[^(]*?)( \((?P<note>.*)\))?"
)


def artifact_key(*words: str) -> str:
    """A key as Prefect wants it: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower()).strip("-")


def percent_of(progress: dict) -> float:
    """Percent done, 0 while the total is unknown."""
    return round(100 * min(progress["done"] / progress["total"], 1), 1) if progress["total"] else 0.0


def describe(progress: dict) -> str:
    """The text of a progress artifact; :func:`parse_description` reads it back."""
    return f"{progress['stage']}: {amount(progress)}"


def amount(progress: dict) -> str:
    """``1,200 of 26,000 passages (a note)``; without ``of ...`` while the total is unknown."""
    of = f" of {progress['total']:,}" if progress["total"] else ""
    note = f" ({progress['note']})" if progress.get("note") else ""
    return f"{progress['done']:,}{of} {progress['unit']}{note}"


def parse_description(text: str) -> dict | None:
    """``stage, done, total, unit`` (and ``note``) of a progress artifact's text; None if it is another's."""
    found = _DESCRIPTION.fullmatch(text or "")
    if not found:
        return None
    numbers = {name: int((found[name] or "0").replace(",", "")) for name in ("done", "total")}
    note = {"note": found["note"]} if found["note"] else {}
    return {"stage": found["stage"], "unit": found["unit"], **numbers, **note}
