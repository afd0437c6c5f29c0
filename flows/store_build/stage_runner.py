"""The stages of one folder, opened one after the other: which were finished already, and the result of each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.corpus.accounts import account_lines
from pipeline.tasks import is_disk_full
from storage_schema.layout import additions_folder
from storage_schema.manifest import Manifest, StoreError
from storage_schema.stage import Stage, open_stage


class Stages:
    """The stages of a job.

    Args:
        folder: each stage is a folder in it, named as its kind.
        rebuild: replace stages built with other settings; None: never offer it.
        published: the URI at which these stages were published; they are then not replaced.
    """

    def __init__(self, folder: Path, *, rebuild: bool | None, published: str | None = None):
        self.folder, self.rebuild, self.published = folder, None if published else rebuild, published
        self.manifests: dict[str, Manifest] = {}
        self.summary: dict[str, dict] = {}
        """Of each stage: ``skipped``, ``digest``, ``counts``, ``seconds``."""

    def open(self, kind: str, configuration: dict, inputs: dict[str, str]) -> Stage:
        """Open a stage (see :func:`storage_schema.stage.open_stage`)."""
        try:
            stage = open_stage(
                self.folder / kind,
                kind=kind,
                configuration=configuration,
                inputs=inputs,
                rebuild=self.rebuild,
            )
        except StoreError as error:
            if self.published:
                raise StoreError(
                    f"{self.published} holds a finished store, which is not replaced: use another prefix, or remove "
                    f"it there. {error}"
                ) from error
            raise
        if stage.damage:
            print(f"{stage.damage} The stage {kind} is built again.", flush=True)
        if stage.finished is None and additions_folder(self.folder).exists():
            raise StoreError(
                f"{self.folder} has additions, which are of the tree it has now. Build a new store under another "
                f"name, or remove {additions_folder(self.folder)}."
            )
        self.summary[kind] = {"skipped": stage.finished is not None}
        return stage

    def close(self, kind: str, stage: Stage) -> None:
        """Print whether a stage was finished now or before, and keep its manifest."""
        manifest = stage.finished
        assert manifest is not None
        skipped = self.summary[kind]["skipped"]
        state = "finished already, skipped" if skipped else f"finished in {manifest.seconds:.1f} s"
        print(f"{kind}: {state} ({_main_counts(manifest)})", flush=True)
        for line in account_lines(manifest.counts):
            print(f"{kind}: {line}", flush=True)
        self.manifests[kind] = manifest
        self.summary[kind] |= {
            "digest": manifest.digest,
            "counts": manifest.counts,
            "seconds": manifest.seconds,
        }

    def digests(self, *kinds: str) -> dict[str, str]:
        """Digests of stages that were closed before: the inputs of the next one."""
        return {kind: self.manifests[kind].digest for kind in kinds}


@contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Turn the error of a full disk into one that names the store's folder."""
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise StoreError(
            f"The disk of {folder} is full: {error}. Free some space and run again; finished stages and "
            "parts are kept."
        ) from error


def _main_counts(manifest: Manifest) -> str:
    return ", ".join(
        f"{name} {value}" for name, value in manifest.counts.items() if isinstance(value, (int, float))
    )
