"""The domain atlas: one HTML page with the map, the data and plotly.js inside, which needs no network.

It is written beside the store as ``<store>/atlas.html``. A page with specialists shows their domain weights h on the
same map, and is a file of its own. The parts of the page are the files of ``flows/atlas/``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.reports.atlas import Atlas, DomainPortrait, collect_atlas
from pipeline.tasks import Report, ignore_progress
from storage_schema.domains import DomainStore
from storage_schema.errors import UserError
from storage_schema.layout import DOMAIN_WORDS, home
from storage_schema.manifest import (
    WRITTEN_BY,
    StoreError,
    content_digest,
    file_digest,
    manifest_name,
    read_manifest,
    write_atomically,
)

FILE_NAME = "atlas.html"
PAGE_FILES = Path(__file__).parent
STYLES = ("shared/colours.css", "page.css")
"""Parts of one style sheet, in this order; the page of `soe serve` takes the first one too."""
SCRIPTS = ("state.js", "map.js", "panel.js", "actions.js")
"""Parts of one script, in this order."""
MOST_DOMAINS = 16_384
"""A browser takes too long to draw a map of more tiles."""
HEAD_BYTES = 1024
"""The identity is within so many first bytes of a page."""

Weights = Mapping[int, float]


def write_atlas(
    folder: str | Path,
    *,
    specialists: str | Path | None = None,
    out: str | Path | None = None,
    report: Report = ignore_progress,
) -> Path:
    """Write the atlas of a finished store, unless the file has the same page already; returns its path.

    Args:
        folder: the store's folder.
        specialists: the folder of a specialist, or of several; None: the page shows the store only.
        out: the file. By default ``atlas.html`` in the store's folder, with specialists ``atlas-<folder>.html``.

    Raises:
        StoreError: the store or a specialist is not finished, or the specialist is of another store.
        ValueError: the store has more than ``MOST_DOMAINS`` domains.
    """
    store = DomainStore(folder)
    if store.num_domains > MOST_DOMAINS:
        raise UserError(
            f"{folder} has {store.num_domains} domains; a page shows at most {MOST_DOMAINS}. "
            "Look at the table of domains in the Prefect run instead."
        )
    weights = read_specialists(specialists, store) if specialists is not None else {}
    name = f"atlas-{Path(specialists).name}.html" if specialists is not None else FILE_NAME
    path = Path(out) if out is not None else Path(folder) / name
    identity = _identity(store, weights)
    if not _is_there(path, identity):
        atlas = collect_atlas(store, report=report)
        write_atomically(path, atlas_page(atlas, Path(folder).name, weights, identity=identity))
        words = [portrait.words for portrait in atlas.domains]
        write_atomically(Path(folder) / DOMAIN_WORDS, json.dumps(words, ensure_ascii=False))
    return path


def atlas_page(atlas: Atlas, store: str, specialists: Mapping[str, Weights], *, identity: str = "") -> str:
    """The page's HTML.

    Args:
        store: the name that the page shows.
        specialists: name → domain → weight; the first is shown when the page opens.
        identity: a digest of what the page was made from.
    """
    from plotly.offline import get_plotlyjs

    scripts = {"PLOTLY": get_plotlyjs(), "SCRIPT": "\n".join(map(_part, SCRIPTS))}
    parts = scripts | {
        "IDENTITY": identity,
        "STYLE": "".join(map(_part, STYLES)),
        "DATA": embedded_json(_columns(atlas, store, specialists)),
        "SCRIPT_HASHES": " ".join(map(hash_source, scripts.values())),
    }
    return re.sub(r"\{\{([A-Z_]+)\}\}", lambda mark: parts[mark[1]], _part("page.html"))


def read_specialists(folder: str | Path, store: DomainStore) -> dict[str, dict[int, float]]:
    """Name → domain → weight of the specialist in `folder`, or of each specialist in a folder below it.

    Raises :class:`StoreError` if there is none, or if one is of a soup with other domains.
    """
    from soe_model.specialists.recipe import read_recipe

    folder = Path(folder)
    name = manifest_name("specialist")
    folders = (
        [folder] if (folder / name).exists() else sorted(path.parent for path in folder.glob(f"*/{name}"))
    )
    if not folders:
        raise StoreError(f"no specialist at {folder}: {name} is missing. Make it first, or check the name.")
    soups = {}
    for path in sorted((home() / "soups").glob(f"*/{manifest_name('soup')}")):
        soup = read_manifest(path.parent, "soup")
        soups[soup.digest] = soup.inputs
    found = {}
    for one in folders:
        recipe = read_recipe(one)
        weights = recipe.domain_weights or {}
        trained_on = soups.get(recipe.soup, {}).get("domains", store.digest)
        if trained_on not in store.digests or max(weights, default=0) >= store.num_domains:
            raise StoreError(
                f"{one} is a specialist of a soup of other domains than those of {store.folder.parent}. "
                "Give the store its soup was trained on."
            )
        found[one.name] = weights
    return found


def embedded_json(value: Any) -> str:
    """JSON that is safe inside a ``<script>`` element, whatever text it contains."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _columns(atlas: Atlas, store: str, specialists: Mapping[str, Weights]) -> dict[str, Any]:
    def column(name: str) -> list[Any]:
        return [getattr(portrait, name) for portrait in atlas.domains]

    return {
        "store": store,
        "digest": atlas.digest,
        "clusters": atlas.coarse_words,
        **{name: column(name) for name in ("tokens", "passages", "sampled", "words", "samples")},
        "distance": [_rounded(portrait) for portrait in atlas.domains],
        "sources": [[(name, round(share, 4)) for name, share in sources] for sources in column("sources")],
        "specialists": [{"name": name, "weights": weights} for name, weights in specialists.items()],
    }


def _rounded(portrait: DomainPortrait) -> float | None:
    distance = portrait.mean_squared_distance
    return None if distance is None else round(distance, 4)


def _part(name: str) -> str:
    return (PAGE_FILES / name).read_text("utf-8")


def hash_source(script: str) -> str:
    """The script's hash, as a Content-Security-Policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _identity(store: DomainStore, specialists: Mapping[str, Weights]) -> str:
    return content_digest(
        {
            "domains": store.digest,
            "specialists": {name: sorted(weights.items()) for name, weights in specialists.items()},
            "parts": {name: file_digest(PAGE_FILES / name) for name in (*STYLES, *SCRIPTS, "page.html")},
            "written_by": [WRITTEN_BY, version("plotly")],
        }
    )


def _is_there(path: Path, identity: str) -> bool:
    try:
        with open(path, "rb") as file:
            return identity.encode() in file.read(HEAD_BYTES)
    except FileNotFoundError:
        return False
