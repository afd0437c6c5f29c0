"""Checking a whole store: each passage is in exactly one domain, and each byte is as it was written.

Legend: K domains.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from pipeline.remote import files as remote_files
from pipeline.remote.store import RemoteStore
from pipeline.tasks import Report, ignore_progress
from storage_schema.corpus import part_files, rows_of
from storage_schema.domains import PARTITIONS, DomainStore, DomainVolume
from storage_schema.layout import store_and_additions
from storage_schema.manifest import FileEntry, StoreError, read_manifest, verify_file

STAGES = ("passages", "tokenizer", "embeddings", "domains")
STAGES_ADDED = ("passages", "embeddings", "domains")
"""The stages of an addition, which uses the store's tokenizer."""


def audit_store(folder: str | Path, *, report: Report = ignore_progress) -> dict[str, int]:
    """Check everything that a finished store promises. Takes one byte of memory per passage.

    Args:
        report: progress in files and domains.

    Returns:
        How many ``files``, ``bytes``, ``passages``, ``tokens`` and ``domains`` were checked.

    Raises:
        StoreError: at the first fault; the message names the file or the domain.
    """
    store = DomainStore(folder)
    folders = store_and_additions(folder)
    files = []
    tokenizer = read_manifest(folders[0] / "tokenizer", "tokenizer")
    for number, volume in enumerate(folders):
        stages = STAGES if volume == folders[0] else STAGES_ADDED
        manifests = {stage: read_manifest(volume / stage, stage) for stage in stages}
        _check_chain(volume, manifests, {"tokenizer": tokenizer} | manifests)
        if number and manifests["passages"].inputs["store"] != store.digests[number - 1]:
            raise StoreError(f"{volume} was added to another store than the one it lies in. Remove it.")
        files += [(volume / stage, entry) for stage in stages for entry in manifests[stage].files]
    total = len(files) + store.num_domains
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing releases Python's global lock
        for number, _ in enumerate(pool.map(verify_file, *zip(*files, strict=True))):
            report(number + 1, total)
    seen = _Seen(folders)
    for domain in range(store.num_domains):
        for volume in store.volumes:
            _check_domain(store, volume, domain, seen)
        report(len(files) + domain + 1, total)
    seen.check_all()
    return {
        "files": len(files),
        "bytes": sum(entry.bytes for _, entry in files),
        "passages": int(store.passages_K.sum()),
        "tokens": int(store.tokens_K.sum()),
        "domains": store.num_domains,
    }


def verify_domains(store: DomainStore, *, report: Report = ignore_progress) -> None:
    """Compare every file of the store's domains, here or elsewhere, with its sha256 in the manifest.

    Args:
        report: progress in files.

    Raises:
        StoreError: at the first file that differs; the message names it.
    """
    files = [
        (number, entry) for number, volume in enumerate(store.volumes) for entry in volume.manifest.files
    ]

    def verify(number: int, entry: FileEntry) -> None:
        if not isinstance(store, RemoteStore) or not entry.path.startswith(PARTITIONS):
            verify_file(store.volumes[number].folder, entry)  # all but partitions lie on this machine
            return
        file = store.remote_file(number, entry.path)
        if store.files.digest(file) != entry.sha256:
            raise StoreError(
                f"{file.uri} was altered: its sha256 differs from the manifest. Copy the store there again."
            )

    with ThreadPoolExecutor(
        remote_files.THREADS if isinstance(store, RemoteStore) else os.cpu_count()
    ) as pool:
        for done, _ in enumerate(pool.map(verify, *zip(*files, strict=True))):
            report(done + 1, len(files))


class _Seen:
    """Whether each training passage was met. A passage's id holds the number of its file and its row."""

    def __init__(self, folders: list[Path]):
        files = [file for folder in folders for file in part_files(folder / "passages", "train")]
        numbers = [int(file.stem.rpartition("-")[2]) for file in files]
        self.rows = np.zeros(
            max(numbers) + 1, np.int64
        )  # held-out files are numbered too, but are in no domain
        self.rows[numbers] = rows_of(files)
        self.edges = np.cumsum([0, *self.rows])
        self.times = np.zeros(int(self.edges[-1]), np.uint8)

    def add(self, domain: int, ids: np.ndarray) -> None:
        file, row = ids >> 32, ids & 0xFFFFFFFF
        unknown = (file < 0) | (file >= len(self.rows))
        unknown |= row >= self.rows[np.where(unknown, 0, file)]
        if unknown.any():
            raise StoreError(
                f"domain {domain} holds passage {ids[np.argmax(unknown)]}, which does not exist. Rebuild the store."
            )
        at = self.edges[file] + row
        again = np.ones(len(at), bool)
        again[np.unique(at, return_index=True)[1]] = False  # the first of each
        again |= self.times[at] > 0
        if again.any():
            raise StoreError(
                f"domain {domain} holds a passage twice, or one of another domain, such as {ids[np.argmax(again)]}. "
                "Rebuild the store."
            )
        self.times[at] = 1

    def check_all(self) -> None:
        if not self.times.all():
            at = int(np.argmin(self.times))
            file = int(np.searchsorted(self.edges, at, side="right")) - 1
            raise StoreError(
                f"{np.count_nonzero(self.times == 0)} passages are in no domain; the first is row "
                f"{at - self.edges[file]} of part {file}. Rebuild the store."
            )


def _check_chain(folder: Path, manifests: dict, upstream: dict) -> None:
    """Check that each stage was made from the other stages as they are now."""
    for stage, manifest in manifests.items():
        for name, digest in manifest.inputs.items():
            if name in upstream and upstream[name].digest != digest:
                raise StoreError(
                    f"{folder / stage} was made from other {name} than those beside it. Rebuild it."
                )


def _check_domain(store: DomainStore, volume: DomainVolume, domain: int, seen: _Seen) -> None:
    path = volume.folder / volume.name(int(volume.file_K[domain]))
    empty = not volume.passages_K[domain]
    if empty and not volume.tokens_K[domain] and not path.exists():
        return
    batch = volume.batch(domain, full=True)
    if empty:
        if batch.num_rows or volume.tokens_K[domain]:
            raise StoreError(
                f"domain {domain} has no passages in the index, but some in {path}. Rebuild the store."
            )
        return
    tokens = batch.column("tokens")
    offsets, stream = tokens.offsets.to_numpy(), volume.tokens(domain)
    whole = not tokens.values.null_count and np.array_equal(stream, tokens.values.to_numpy())
    whole = whole and offsets[0] == 0 and offsets[-1] == len(stream) and (np.diff(offsets) > 0).all()
    ends = stream[offsets[1:] - 1] if whole else stream
    if not whole or batch.num_rows != volume.passages_K[domain] or (ends != store.end_of_text).any():
        raise StoreError(
            f"domain {domain}: {path} does not hold {volume.passages_K[domain]} passages, each ending in end-of-text, "
            "one after the other. Rebuild the store."
        )
    seen.add(domain, batch.column("passage_id").to_numpy())
