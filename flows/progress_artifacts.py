"""The progress of a run as Prefect artifacts: a bar for each stage in the run's page."""

from __future__ import annotations

import time
from typing import Any

from prefect.artifacts import create_progress_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.logging import get_logger

from flows.progress_text import artifact_key, describe, percent_of


class ProgressArtifacts:
    """One progress artifact for each stage of a run, created at its first line and updated once a second.

    A server that does not answer for a moment costs an update, never the run.
    """

    def __init__(self, flow_name: str):
        self._flow_name = flow_name
        self._client = get_client(sync_client=True).__enter__()
        self._ids: dict[str, Any] = {}
        self._sent: dict[str, float] = {}
        self._waiting: dict[str, dict] = {}

    def update(self, progress: dict) -> None:
        """Take one progress line: ``stage, done, total, unit``."""
        stage = progress["stage"]
        complete = progress["total"] and progress["done"] >= progress["total"]
        self._waiting[stage] = progress
        if complete or time.monotonic() - self._sent.get(stage, -1.0) >= 1.0:
            self._send(stage)

    def close(self) -> None:
        """Send what the throttle held back."""
        for stage in list(self._waiting):
            self._send(stage)
        self._client.__exit__(None, None, None)

    def _send(self, stage: str) -> None:
        progress = self._waiting.pop(stage)
        percent, text = percent_of(progress), describe(progress)
        self._sent[stage] = time.monotonic()
        try:
            if stage in self._ids:
                self._client.update_artifact(self._ids[stage], ArtifactUpdate(data=percent, description=text))
            else:
                key = artifact_key(self._flow_name, stage)
                self._ids[stage] = create_progress_artifact(percent, key=key, description=text)
        except Exception as error:
            get_logger("soe").debug("progress not shown: %s", error)
