"""The folder of the soup that a command or job names, wherever the soup lies."""

from __future__ import annotations

from pathlib import Path

from flows.reporting.progress import progress
from pipeline.remote.soup import fetch_soup
from storage_schema.layout import soup_folder


def soup_to_read(name: str) -> Path:
    """The folder of the soup of that name, path or URI; of a URI it is this machine's copy, fetched if it is missing.

    Raises:
        StoreError, ValueError: as :func:`~pipeline.remote.soup.fetch_soup` does.
    """
    if "://" not in name:
        return soup_folder(name)
    with progress("fetch the soup", "MB") as report:
        return fetch_soup(name, report=report)
