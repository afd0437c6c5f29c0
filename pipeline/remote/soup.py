"""A soup that lies elsewhere, on this machine: fetched once, and found by its digest.

    <SOE_HOME>/cache/soups/<digest>/<last name of the URI>/   the soup's folder

The folder ``cache`` may be removed while nothing runs.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.places.locations import open_filesystem
from pipeline.remote.fetch import fetch_stages, stage_to_fetch
from pipeline.remote.mirror import Source
from pipeline.tasks import Report, ignore_progress
from storage_schema.layout import home, last_name
from storage_schema.lock import in_turn
from storage_schema.manifest import manifest_name, parse_manifest


def fetch_soup(uri: str, *, to: Path | None = None, report: Report = ignore_progress) -> Path:
    """Copy the soup at `uri` here, unless this machine has it, and return its folder.

    Any number of processes may call this at once: one copies and the others wait. The manifest is read each time, so a
    soup that was replaced there is noticed.

    Args:
        uri: ``s3://bucket/prefix``, or another URI that ``pyarrow.fs`` opens.
        to: the folder to copy it to, unless that is there; None: the cache.
        report: progress in megabytes.

    Raises:
        StoreError: a file of the soup is missing or altered, or cannot be read.
        ValueError: the URI cannot be opened, or the disk is too small.
    """
    uri = uri.rstrip("/")
    filesystem, path = open_filesystem(uri, what="The soup")
    source = Source(uri, filesystem, path, what="The soup")
    name = manifest_name("soup")
    content = source.read(name)
    manifest = parse_manifest(content, f"{uri}/{name}", "soup")
    target = to or home() / "cache" / "soups" / manifest.digest[:20] / last_name(uri)
    target.parent.mkdir(parents=True, exist_ok=True)
    with in_turn(target):
        if not target.exists():
            fetch_stages(source, [stage_to_fetch("", manifest, content, target)], report=report)
    return target
