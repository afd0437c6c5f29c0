"""Versions of what lies on disk: a file says its schema and the release that wrote it; a newer one is refused.

A schema's number goes up when a release of before could no longer read what is written, or would misread it. What a
release of ours does read it reads whoever wrote it: ``written_by`` is for the message, and decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RELEASE = "0.1.0"
"""As in pyproject.toml, which is not there where only the model's part is installed; a test compares them."""
WRITTEN_BY = f"soup-of-experts {RELEASE}"
SCHEMA_VERSION = 1
"""Of manifests, checkpoints and run records."""


def written_with() -> dict[str, Any]:
    """What a file without a manifest says of its version."""
    return {"schema_version": SCHEMA_VERSION, "written_by": WRITTEN_BY}


def version_problem(where: object, body: Mapping[str, Any]) -> str | None:
    """Why this release does not read the file `where`, which holds `body`, and the way out; None if it does.

    To be asked before anything else of the body: a newer one may hold other fields, and another digest.
    """
    found = body.get("schema_version")
    if type(found) is int and found == SCHEMA_VERSION:
        return None
    writer = body.get("written_by")
    if not isinstance(writer, str) or not writer.isprintable() or len(writer) > 80:
        writer = None
    if type(found) is int and found > SCHEMA_VERSION:
        way_out = f"Install {writer or 'the release that wrote it'}, or a newer one, to read it."
    else:
        way_out = f"Use {writer or 'the release that wrote it'}, or make it again with this one."
    by = repr(writer) if writer else "a release that it does not name"
    return (
        f"{where} has schema version {found!r:.40}, written by {by}; this is {WRITTEN_BY}, which reads version "
        f"{SCHEMA_VERSION}. {way_out}"
    )
