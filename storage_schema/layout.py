"""Where things live below ``SOE_HOME``, by default ``.soe`` in the working directory: README.md lists its folders."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from storage_schema.errors import UserError

DOMAIN_WORDS = "domain-words.json"
"""In a store and in its soups, once an atlas was made: for each domain a list of its most telling words."""
DOMAIN_WINDOWS = "domain-windows.json"
"""In a soup: for each domain the number of windows of the training's sequence length."""

MADE = "made.json"
"""In a folder of specialists: what the last run made there and from what. The same request again is skipped."""
COMPARISON_RESULTS, COMPARISON_PAGE = "results.json", "comparison.html"
"""In the folder of a comparison: what was found, and the page that shows it."""


def home() -> Path:
    """The absolute path of ``SOE_HOME``."""
    return Path(os.environ.get("SOE_HOME") or ".soe").expanduser().absolute()


def store_folder(name: str) -> Path:
    """A store's folder. A bare name lives under ``SOE_HOME/stores``; a path with a slash is taken as it is."""
    return _resolve("stores", name)


def store_place(name: str) -> str:
    """Where a store is read from: a URI (``s3://bucket/prefix``) as it is, else the path of its folder."""
    return name.rstrip("/") if "://" in name else str(store_folder(name))


def store_to_write(name: str) -> Path:
    """The folder in which a store is written: its own, or for a URI the working copy of what is published there."""
    return _working_copy(name) / "store" if "://" in name else store_folder(name)


def run_folder(name: str) -> Path:
    """A pretraining run's folder (checkpoints and log); for a URI the working copy."""
    return _working_copy(name) / "runs" / last_name(name) if "://" in name else _resolve("runs", name)


def soup_folder(name: str) -> Path:
    """A finished soup's folder."""
    return _resolve("soups", name)


def soup_to_write(name: str) -> Path:
    """The folder in which a run writes its soup: the soup's own, or for a URI the working copy."""
    return _working_copy(name) / "soup" if "://" in name else soup_folder(name)


def specialist_folder(name: str) -> Path:
    """The folder of one specialist, or of a named set of them."""
    return _resolve("specialists", name)


def comparison_folder(name: str) -> Path:
    """The folder of a comparison of methods."""
    return _resolve("comparisons", name)


def additions_folder(store: str | Path) -> Path:
    """The folder of the documents that were added to a store after it was built."""
    return Path(store) / "additions"


def store_and_additions(store: str | Path) -> list[Path]:
    """The store's own folder, then those of its finished additions, in the order they were made."""
    added = sorted(path.parent for path in additions_folder(store).glob("[0-9]*/domains"))
    return [Path(store), *added]


def last_name(uri: str) -> str:
    """The last name in a URI, as a folder may be called."""
    return re.sub(r"[^\w.-]", "_", uri.rstrip("/").rpartition("/")[2])[:40].lstrip(".") or "unnamed"


def _working_copy(uri: str) -> Path:
    """The folder of what is written at a URI: ``SOE_HOME/copies/<last name>-<hash of the URI>``."""
    digest = hashlib.sha256(uri.rstrip("/").encode()).hexdigest()
    return home() / "copies" / f"{last_name(uri)}-{digest[:12]}"


def _resolve(room: str, name: str) -> Path:
    if not name or name in (".", ".."):
        raise UserError(f"{name!r} is not a name for a folder of {room}.")
    if "://" in name:
        raise UserError(
            f"{name!r} is elsewhere, where {room} are not taken from here. Copy it to this machine and give its path."
        )
    if "/" in name:
        return Path(name).expanduser().absolute()
    return home() / room / name
