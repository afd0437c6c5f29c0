"""A pretraining run whose name is ``s3://bucket/prefix``: trained in a folder here, and sent there as it goes.

    <URI>/soup.json ...     the finished soup; soup.json comes last
    <URI>/run/step-... ...  the checkpoints, then the records, then Ray's list of them; then the older ones go
    <URI>/run/*.json ...    the run's records and its log

A checkpoint is sent once Ray has registered it, so a list that is there names a newest checkpoint that is whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from flows.reporting.progress import progress
from flows.training.run_sender import RunSender
from pipeline.places.buckets import Bucket
from pipeline.remote.claim import Claim
from pipeline.remote.publish import publish_soup
from pipeline.remote.soup import fetch_soup
from storage_schema.layout import run_folder, soup_to_write
from storage_schema.lock import only_writer
from storage_schema.manifest import StoreError


@contextmanager
def written_run(name: str) -> Iterator[None]:
    """Let the block train the run of that name or URI in ``run_folder(name)`` and write ``soup_to_write(name)``.

    A run at a URI is claimed first; what is there and not here is fetched. While the block runs, its checkpoints are
    sent; at its end the soup is. A process that is killed leaves its claim, and goes on with it.

    Raises:
        StoreError: another process writes the run, another run or soup is there, or the bucket cannot be read or
            written.
    """
    if "://" not in name:
        yield
        return
    bucket, folder, soup = Bucket(name), run_folder(name), soup_to_write(name)
    with only_writer(folder.parent):
        claim = Claim(bucket, folder.parent)
        claim.take()
        try:
            finished = bucket.read("soup.json") is not None
            sender = RunSender(folder, bucket, claim)
            with progress("fetch the run", "MB") as report:
                sender.fetch(report, checkpoints=not finished)
            if finished:
                with progress("fetch the soup", "MB") as report:
                    fetch_soup(bucket.uri, to=soup, report=report)
                yield
            else:
                with sender.at_work():
                    yield
            claim.take()  # somebody may have removed it in the meantime, and another writer come
            with progress("publish the soup", "MB") as report:
                publish_soup(soup, bucket, report=report)
        finally:
            with suppress(StoreError):
                claim.drop()
    print(f"published: {bucket.uri}", flush=True)
