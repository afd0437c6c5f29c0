"""A run in the Prefect UI while it runs: a bar for each stage, a table of the stages, and a card of the run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_progress_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.logging import get_logger

from flows.reporting.artifact_text import artifact_key, describe, percent_of
from flows.reporting.local_time import local_time

TABLE_SECONDS = 2.0
"""Between two tables of the stages, which `soe run` and `soe status` read."""
CARD_SECONDS = 30.0
"""Between two versions of a run's card, which may be a picture that has to be drawn."""
Card = Callable[[], str | None]
"""Markdown on the state of the run, or None while there is nothing to say."""


class ProgressArtifacts:
    """The artifacts of a run that is under way. Each is created at its first news and updated at most once per second.

    If the server does not answer for a moment, an update is lost, never the run.

    Args:
        card: drawn every half minute, under `card_key`.
    """

    def __init__(self, flow_name: str, *, card: Card | None = None, card_key: str = ""):
        self._flow_name, self._card, self._card_key = flow_name, card, card_key
        self._client = get_client(sync_client=True).__enter__()
        self._ids: dict[str, Any] = {}
        self._sent: dict[str, float] = {}
        self._waiting: dict[str, dict] = {}
        self._stages: dict[str, dict] = {}
        self._card_at = self._table_at = time.monotonic()

    def update(self, progress: dict) -> None:
        """Take one progress line: ``stage, done, total, unit``, and perhaps ``note``."""
        stage = progress["stage"]
        complete = bool(progress["total"]) and progress["done"] >= progress["total"]
        self._waiting[stage] = progress
        if complete or time.monotonic() - self._sent.get(stage, -1.0) >= 1.0:
            self._send(stage)
        self._note_stage(progress, complete)
        if self._card and time.monotonic() - self._card_at >= CARD_SECONDS:
            self._show_card(self._card)

    def show_card(self, name: str, markdown: str) -> None:
        """Show what a job says about itself once, such as how long it will take."""
        key = artifact_key(self._flow_name, name)
        self._show(
            key,
            lambda: create_markdown_artifact(markdown, key=key, description=f"The {name} of this run."),
            ArtifactUpdate(data=markdown),
        )

    def close(self) -> None:
        """Send what the throttle held back."""
        for stage in list(self._waiting):
            self._send(stage)
        if self._stages:
            self._show_stages()
        self._client.__exit__(None, None, None)

    def _send(self, stage: str) -> None:
        progress = self._waiting.pop(stage)
        percent, text = percent_of(progress), describe(progress)
        self._sent[stage] = time.monotonic()
        key = artifact_key(self._flow_name, stage)
        self._show(
            key,
            lambda: create_progress_artifact(percent, key=key, description=text),
            ArtifactUpdate(data=percent, description=text),
        )

    def _note_stage(self, progress: dict, complete: bool) -> None:
        """Update a row of the table. The table is sent when a stage begins or ends, and every few seconds between."""
        before = self._stages.get(progress["stage"])
        begun = before["begun"] if before else time.time()
        self._stages[progress["stage"]] = {
            **progress,
            "begun": begun,
            "now": time.time(),
            "complete": complete,
        }
        if (
            before is None
            or complete != before["complete"]
            or time.monotonic() - self._table_at >= TABLE_SECONDS
        ):
            self._show_stages()

    def _show_stages(self) -> None:
        rows = [
            {
                "stage": name,
                "state": "finished" if row["complete"] else "running",
                "done": row["done"],
                "total": row["total"],
                "unit": row["unit"],
                "note": row.get("note", ""),
                "began": local_time(row["begun"]),
                "seconds": round(row["now"] - row["begun"], 1),
            }
            for name, row in self._stages.items()
        ]
        key = artifact_key(self._flow_name, "stages")
        self._table_at = time.monotonic()
        self._show(
            key,
            lambda: create_table_artifact(rows, key=key, description="The stages of this run."),
            ArtifactUpdate(data=json.dumps(rows)),
        )

    def _show_card(self, card: Card) -> None:
        self._card_at = time.monotonic()
        try:
            markdown = card()
        except Exception as error:
            get_logger("soe").debug("the run's card was not drawn: %s", error)
            return
        if markdown:
            self._show(
                self._card_key,
                lambda: create_markdown_artifact(
                    markdown, key=self._card_key, description="The run, as it comes along."
                ),
                ArtifactUpdate(data=markdown),
            )

    def _show(self, key: str, create: Callable[[], Any], update: ArtifactUpdate) -> None:
        try:
            if key in self._ids:
                self._client.update_artifact(self._ids[key], update)
            else:
                self._ids[key] = create()
        except Exception as error:
            get_logger("soe").debug("%s not shown: %s", key, error)
