"""Versions of files on disk: a file names its schema version and the release that wrote it; a newer schema is refused.

The schema version goes up when an earlier release could not read the new files, or would misread them. Only the schema
version decides whether a file is read; ``written_by`` is for the message.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RELEASE = "0.1.0"
"""Equals the version in pyproject.toml (a test compares them), which is missing if only soe_model is installed."""
WRITTEN_BY = f"soup-of-experts {RELEASE}"
SCHEMA_VERSION = 1
"""The schema version of manifests, checkpoints and run records, but of those in NEWER."""
NEWER = {"domains": 2}
"""The kinds of manifest with a newer one, whose earlier ones are read too: in version 1 each domain had a file."""


def newest_version(kind: object) -> int:
    """The schema version of manifests of a kind, or of a file that has no manifest."""
    return NEWER.get(kind, SCHEMA_VERSION) if isinstance(kind, str) else SCHEMA_VERSION


def written_with() -> dict[str, Any]:
    """The version fields of a file that has no manifest."""
    return {"schema_version": SCHEMA_VERSION, "written_by": WRITTEN_BY}


def version_problem(where: object, body: Mapping[str, Any]) -> str | None:
    """Why this release cannot read the file `where`, which holds `body`, and the way out; None if it can.

    Call this before reading any other field: a newer file may have other fields and another digest.
    """
    found, newest = body.get("schema_version"), newest_version(body.get("kind"))
    if type(found) is int and SCHEMA_VERSION <= found <= newest:
        return None
    writer = body.get("written_by")
    if not isinstance(writer, str) or not writer.isprintable() or len(writer) > 80:
        writer = None
    if type(found) is int and found > newest:
        way_out = f"Install {writer or 'the release that wrote it'}, or a newer one, to read it."
    else:
        way_out = f"Use {writer or 'the release that wrote it'}, or make it again with this one."
    by = repr(writer) if writer else "a release that it does not name"
    return (
        f"{where} has schema version {found!r:.40}, written by {by}; this is {WRITTEN_BY}, which reads version "
        f"{newest}{' and earlier ones' * (newest > SCHEMA_VERSION)}. {way_out}"
    )
