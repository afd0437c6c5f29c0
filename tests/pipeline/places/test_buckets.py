"""Objects that are written to S3 whole or not at all, and what is said where they cannot be."""

from __future__ import annotations

import time

import moto.settings
import pytest

from pipeline.places import buckets
from pipeline.places.buckets import Bucket
from storage_schema.errors import UserError
from storage_schema.manifest import StoreError, UnavailableError
from tests.s3_server import BUCKET

pytestmark = pytest.mark.usefixtures("in_haste")


@pytest.fixture
def bucket(proxy, tmp_path):
    """At a prefix that no other test has on the server."""
    return Bucket(f"s3://{BUCKET}/{tmp_path.name}")


def test_a_conflict_is_tried_again(bucket, proxy):
    """S3 answers 409 to a conditional write beside a removal, and nobody's object is there then."""
    proxy.rule = lambda method, path, where, seen: "conflict" if method == "PUT" and seen < 3 else None
    assert bucket.create("a", b"mine") == b"mine" and bucket.read("a") == b"mine"
    assert bucket.create("a", b"theirs") == b"mine"
    proxy.rule = lambda *_: "conflict"
    with pytest.raises(UnavailableError, match=f"^{bucket.uri}/b cannot be written: .* Run again"):
        bucket.create("b", b"")


def test_a_large_file_is_sent_in_parts(bucket, proxy, tmp_path, monkeypatch):
    monkeypatch.setattr(buckets, "PART_BYTES", 5 << 20)
    (path := tmp_path / "large").write_bytes(bytes(range(256)) * (11 << 12))
    bucket.upload(path, "large", sha256="0" * 64)
    assert proxy.of("large", "PUT") == 3 and bucket.digest("large") == "0" * 64
    assert bucket.read("large") == path.read_bytes()


def test_places_that_cannot_be_written(s3, monkeypatch):
    with pytest.raises(StoreError, match="^s3://nowhere/x.* has no bucket 'nowhere'. Make it"):
        Bucket("s3://nowhere/x").create("a", b"")
    with pytest.raises(StoreError, match="^s3://nowhere/x.* has no bucket 'nowhere'"):
        Bucket("s3://nowhere/x").read("a")
    with pytest.raises(ValueError, match="of places elsewhere only s3:// is"):
        Bucket("gs://texts/x")
    with pytest.raises(ValueError, match="names no bucket"):
        Bucket("s3://")
    with pytest.raises(UserError, match="^'s3://texts/a//b' cannot be written: .*empty"):
        Bucket("s3://texts/a//b")
    monkeypatch.setattr(moto.settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)
    with pytest.raises(StoreError, match="^s3://texts/x/a refuses the credentials: .*Set AWS_ACCESS_KEY_ID"):
        Bucket(f"s3://{BUCKET}/x").create("a", b"")


def test_where_there_are_no_credentials(s3, monkeypatch):
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):  # one of them, then both
        monkeypatch.delenv(variable)
        with pytest.raises(
            StoreError, match=f"^s3://{BUCKET}/x.* no credentials were found .*Set AWS_ACCESS"
        ):
            Bucket(f"s3://{BUCKET}/x").create("a", b"")


@pytest.mark.parametrize("kind", ["reset", "silent"])
def test_a_server_that_is_down_is_given_up_within_a_bounded_time(proxy, monkeypatch, kind):
    monkeypatch.setattr(buckets, "REQUEST_SECONDS", 0.5)
    proxy.rule = lambda *_: kind
    start = time.monotonic()
    with pytest.raises(UnavailableError, match=f"^s3://{BUCKET}/301/a cannot be reached at {proxy.url}: "):
        Bucket(f"s3://{BUCKET}/301").create("a", b"")
    assert time.monotonic() - start < 5
