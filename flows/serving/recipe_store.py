"""Keeps the recipe of each specialist in a small file, so that an id means the same after a restart.

``$SOE_HOME/served/<soup>/<id>.json`` is a manifest like ``specialist.json``, but lists no files; ``soe materialize``
takes it. An id is the first 16 hexadecimal digits of a digest of soup and recipe.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows.serving.limits import Refused
from soe_model.specialists.recipe import Recipe, recipe_of
from storage_schema.layout import home
from storage_schema.manifest import Manifest, content_digest, read_manifest, write_atomically

ID = re.compile(r"[0-9a-f]{16}")
MOST_RECIPES = 10_000
WORK = ".work-"
STALE_SECONDS = 24 * 3600


class RecipeBox:
    """The recipes of one soup.

    Args:
        soup: the soup's digest. Files of another soup with the same name are left alone.
        name: the name of the soup's folder.
    """

    def __init__(self, soup: str, name: str):
        self.soup, self.folder = soup, home() / "served" / name
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._remove_stale_work()
        # The worker's thread puts recipes, the event loop's thread lists them.
        self._lock = threading.Lock()
        self._known = {
            path.stem: path.stat().st_mtime for path in self.folder.glob("*.json") if self._ours(path)
        }

    def ids(self) -> list[tuple[str, int]]:
        """The ids, each with the time it was made (seconds since 1970), newest first."""
        with self._lock:
            self._forget_deleted()
            newest = sorted(self._known.items(), key=lambda row: (-row[1], row[0]))
        return [(name, int(at)) for name, at in newest]

    def put(self, recipe: Recipe, counts: Mapping[str, Any]) -> str:
        """Keep a recipe, and what was measured of its specialist; returns the id.

        Raises :class:`Refused` (507) if there are ``MOST_RECIPES`` already.
        """
        name = content_digest([recipe.soup, recipe.configuration()])[:16]
        manifest = Manifest(
            kind="specialist",
            configuration=recipe.configuration(),
            inputs={"soup": recipe.soup},
            counts=dict(counts),
            files=(),
        )
        with self._lock:
            self._forget_deleted()
            if name not in self._known and len(self._known) >= MOST_RECIPES:
                raise Refused(
                    507,
                    f"{MOST_RECIPES:,} recipes are kept already; delete some in {self.folder}.",
                    code="box_full",
                )
            write_atomically(self._path(name), manifest.to_json())
            self._known[name] = self.made_at(name)
        return name

    def made_at(self, name: str) -> float:
        """When the recipe was put here, in seconds since 1970."""
        return self._path(name).stat().st_mtime

    def manifest(self, name: str) -> Manifest:
        """The manifest of an id, as it is on disk. Raises :class:`Refused` (404) if this soup has no such id."""
        if not ID.fullmatch(name):
            raise self._unknown(name)
        try:
            manifest = self._read(self._path(name))
            if recipe_of(manifest).soup != self.soup:
                raise self._unknown(name)
            return manifest
        except ValueError as error:
            raise self._unknown(name) from error

    def recipe(self, name: str) -> Recipe:
        """The recipe of an id. Raises like :meth:`manifest`."""
        return recipe_of(self.manifest(name))

    @contextmanager
    def work(self) -> Iterator[Path]:
        """A new folder beside the recipes. If the block fails it is deleted; else the caller deletes it."""
        folder = Path(tempfile.mkdtemp(prefix=WORK, dir=self.folder))
        try:
            yield folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _forget_deleted(self) -> None:
        """Forget the ids whose file a user has deleted. Call it under the lock: another thread may be writing one."""
        there = {path.stem for path in self.folder.glob("*.json")}
        for name in self._known.keys() - there:
            self._known.pop(name, None)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _ours(self, path: Path) -> bool:
        try:
            return bool(ID.fullmatch(path.stem)) and recipe_of(self._read(path)).soup == self.soup
        except (ValueError, OSError):
            return False

    def _read(self, path: Path) -> Manifest:
        return read_manifest(path.parent, "specialist", name=path.name)

    def _unknown(self, name: str) -> Refused:
        return Refused(
            404,
            f"There is no specialist {name[:40]!r} of this soup. /v1/models lists those that were made; "
            "the page, or a POST to /api/specialists, makes others.",
            code="model_not_found",
            param="model",
        )

    def _remove_stale_work(self) -> None:
        """Delete what a killed service left. Another service of the same soup may still use younger folders."""
        for folder in self.folder.glob(f"{WORK}*"):
            if time.time() - folder.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
