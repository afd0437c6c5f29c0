"""A store on ``s3://`` that a job writes: worked on in a copy on this machine, and published when it is whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from flows.reporting.progress import progress
from pipeline.places.buckets import Bucket
from pipeline.remote.claim import Claim
from pipeline.remote.fetch import fetch_store
from pipeline.remote.publish import publish_store
from storage_schema.layout import store_to_write
from storage_schema.lock import only_writer
from storage_schema.manifest import StoreError


@dataclass(frozen=True, kw_only=True)
class WrittenStore:
    """A store that a job writes."""

    place: str
    """Its folder, or its URI."""
    folder: Path
    """Where the job writes: the same folder, or the working copy."""
    published: bool
    """Whether a finished store is at the URI already, which is not replaced."""


@contextmanager
def written_store(name: str) -> Iterator[WrittenStore]:
    """The store of that name or URI, for the block to write in :attr:`WrittenStore.folder`.

    A store at a URI is claimed first, so that a second writer is refused, and its finished part is fetched unless the
    copy has it. When the block ends, what is new is sent. A claim is given up at the end, or if the block fails before
    anything was sent; else it stays, and the next run here goes on.

    Raises:
        StoreError: another process writes the store, another store is there, or the bucket cannot be read or written.
    """
    folder = store_to_write(name)
    if "://" not in name:
        yield WrittenStore(place=str(folder), folder=folder, published=False)
        return
    uri = name.rstrip("/")
    bucket = Bucket(uri)
    with only_writer(folder.parent):
        claim = Claim(bucket, folder.parent)
        is_new = claim.take()
        try:
            with progress("fetch the store", "MB") as report:
                published = fetch_store(uri, folder, report=report)
            yield WrittenStore(place=uri, folder=folder, published=published)
        except BaseException:
            if is_new:
                with suppress(StoreError):
                    claim.drop()
            raise
        claim.take()  # somebody may have removed it in the meantime, and another writer come
        with progress("publish the store", "MB") as report:
            publish_store(folder, bucket, report=report)
        claim.drop()
    print(f"published: {uri}", flush=True)
