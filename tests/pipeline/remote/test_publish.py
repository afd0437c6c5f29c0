"""Stores that are published to S3, cut off and taken up again, and fetched from there."""

from __future__ import annotations

import errno
import shutil
from urllib.parse import unquote

import pytest

from pipeline.places.buckets import Bucket
from pipeline.remote import fetch
from pipeline.remote.claim import Claim
from pipeline.remote.fetch import fetch_store
from pipeline.remote.mirror import CLAIM
from pipeline.remote.publish import publish_store
from pipeline.remote.store import open_store
from storage_schema.domains import partition_path
from storage_schema.manifest import StoreError, UnavailableError
from tests.remote_stores import SIZES, check_all, write_part
from tests.s3_server import BUCKET

pytestmark = pytest.mark.usefixtures("in_haste")


@pytest.fixture
def bucket(proxy, own):
    return Bucket(f"s3://{BUCKET}/{own.name}")


@pytest.fixture
def claim(bucket, tmp_path):
    """Taken."""
    (tmp_path / "room").mkdir()
    claim = Claim(bucket, tmp_path / "room")
    assert claim.take()
    return claim


def puts(proxy):
    return [unquote(path.partition("?")[0]) for method, path, _ in proxy.requests if method == "PUT"]


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_published_store_is_the_local_one(bucket, proxy, own, tmp_path):
    (own / "atlas.html").write_text("a map")
    reported = []
    publish_store(own, bucket, report=lambda done, total: reported.append((done, total)))
    sent = [path.removeprefix(f"/{BUCKET}/{own.name}/") for path in puts(proxy)]
    assert sorted(sent) == sorted(files(own))
    of_addition = [name for name in sent if name.startswith("additions/")]
    assert of_addition[-1] == "additions/0001/domains/manifest.json"
    base = [name for name in sent if name not in of_addition and name != "atlas.html"]
    assert base[-1] == "domains/manifest.json"
    assert reported[-1] == (1, 1) and sorted(reported) == reported
    check_all(open_store(bucket.uri), own)
    assert fetch_store(bucket.uri, tmp_path / "fetched")
    assert files(tmp_path / "fetched") == {k: v for k, v in files(own).items() if k != "atlas.html"}
    proxy.requests.clear()
    publish_store(own, bucket)
    assert puts(proxy) == [] and len(proxy.requests) == 3


def test_a_cut_off_upload_is_taken_up_without_what_was_sent(bucket, claim, proxy, own, tmp_path):
    proxy.rule = lambda method, path, *_: "busy" if method == "PUT" and "node-0005" in path else None
    with pytest.raises(
        UnavailableError, match=f"^{bucket.uri}/domains/node-0005.* cannot be written: SlowDown"
    ):
        publish_store(own, bucket)
    with pytest.raises(StoreError, match=f"^{bucket.uri} is not finished: it is being published"):
        open_store(bucket.uri)
    whole = {name for name in bucket.sizes() if "manifest" not in name}
    assert whole and not any(name.endswith("manifest.json") for name in bucket.sizes())
    proxy.rule = lambda *_: None
    proxy.requests.clear()
    assert not Claim(bucket, tmp_path / "room").take()  # it is still ours
    publish_store(own, bucket)
    claim.drop()
    sent = {path.removeprefix(f"/{BUCKET}/{own.name}/") for path in puts(proxy)} - {CLAIM}
    assert sent == files(own).keys() - whole and len(whole & files(own).keys()) > 3
    assert {name: bucket.read(name) for name in bucket.sizes()} == files(own)


def test_a_file_of_the_same_size_and_other_content_is_sent_again(bucket, s3, own):
    name = partition_path(4)
    data = bytearray((own / "domains" / name).read_bytes())
    data[len(data) // 2] ^= 1
    s3.put_object(Bucket=BUCKET, Key=f"{own.name}/domains/{name}", Body=bytes(data))
    publish_store(own, bucket)
    assert bucket.read(f"domains/{name}") == (own / "domains" / name).read_bytes()


def test_an_addition_is_seen_once_it_is_whole(bucket, claim, proxy, own, tmp_path):
    shutil.move(own / "additions", tmp_path / "away")
    publish_store(own, bucket)
    before = open_store(bucket.uri).digest
    shutil.move(tmp_path / "away", own / "additions")
    proxy.rule = lambda method, path, *_: "reset" if method == "PUT" and "0001/domains/man" in path else None
    with pytest.raises(UnavailableError, match="additions/0001/domains/manifest.json cannot be reached"):
        publish_store(own, bucket)
    assert any(name.startswith("additions/0001/domains/node-") for name in bucket.sizes())
    assert open_store(bucket.uri).digest == before
    assert fetch_store(bucket.uri, tmp_path / "fetched") and not (tmp_path / "fetched/additions").exists()
    proxy.rule = lambda *_: None
    publish_store(own, bucket)
    claim.drop()
    assert len(open_store(bucket.uri).volumes) == 2


def test_an_answer_that_is_lost_is_no_other_store(bucket, claim, proxy, own, tmp_path):
    """The last manifest and the claim arrive, their answers do not: the next run finds its own."""
    shutil.rmtree(own / "additions")
    proxy.rule = lambda method, path, *_: "lost" if method == "PUT" and "domains/manifest" in path else None
    with pytest.raises(UnavailableError, match=f"^{bucket.uri}/domains/manifest.json cannot be reached"):
        publish_store(own, bucket)
    proxy.rule = lambda *_: None
    proxy.requests.clear()
    publish_store(own, bucket)
    assert puts(proxy) == [] and open_store(bucket.uri)
    claim.drop()
    proxy.rule = lambda method, path, *_: "lost" if method == "PUT" and CLAIM in path else None
    with pytest.raises(UnavailableError):
        claim.take()
    proxy.rule = lambda *_: None
    assert not claim.take()


def test_another_store_there_is_refused_by_name(bucket, proxy, own, tmp_path):
    publish_store(own, bucket)
    shutil.rmtree(own / "domains")
    shutil.rmtree(own / "additions")
    write_part(own, SIZES[::-1], "uint16", {})
    proxy.requests.clear()
    with pytest.raises(
        StoreError, match=f"^{bucket.uri} holds another store, of digest .* use another prefix"
    ):
        publish_store(own, bucket)
    assert puts(proxy) == []
    with pytest.raises(StoreError, match=f"^{bucket.uri}/domains is of another store than {own}/domains"):
        fetch_store(bucket.uri, own)


def test_a_second_writer_is_refused_until_the_first_is_done(bucket, claim, tmp_path):
    (tmp_path / "other").mkdir()
    other = Claim(bucket, tmp_path / "other")
    with pytest.raises(StoreError, match=f"^{bucket.uri} is being written by process .*{bucket.uri}/{CLAIM}"):
        other.take()
    claim.drop()
    assert other.take() and not other.take()
    claim.drop()  # it is no longer this writer's
    assert not other.take()


def test_a_file_that_was_altered_here_is_not_sent(bucket, proxy, own):
    path = own / "domains" / partition_path(4)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(StoreError, match="was altered"):
        publish_store(own, bucket)
    assert not any("node-0004" in name or "domains/manifest" in name for name in puts(proxy))


def test_fetching_that_was_cut_off_goes_on(bucket, proxy, own, tmp_path):
    publish_store(own, bucket)
    proxy.rule = lambda method, path, *_: "busy" if method == "GET" and "node-0005" in path else None
    with pytest.raises(UnavailableError, match="node-0005"):
        fetch_store(bucket.uri, tmp_path / "fetched")
    assert not (tmp_path / "fetched/domains").exists()
    (tmp_path / "fetched/.domains.fetched/.some.0123456789ab.aside").write_bytes(
        b"half a file, by a killed fetch"
    )
    proxy.rule = lambda *_: None
    proxy.requests.clear()
    fetch_store(bucket.uri, tmp_path / "fetched")
    assert proxy.of(f"/domains/{partition_path(4)}") == 0
    assert files(tmp_path / "fetched") == files(own)


@pytest.mark.parametrize("kind", ["busy", "reset", "cut"])
def test_of_a_large_file_only_what_failed_is_fetched_again(bucket, proxy, own, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(fetch, "PIECE_BYTES", 10_000)
    publish_store(own, bucket)
    name, size = partition_path(4), (own / "domains" / partition_path(4)).stat().st_size
    proxy.rule = lambda method, path, where, seen: (
        kind if method == "GET" and name in path and seen < 2 else None
    )
    proxy.requests.clear()
    assert fetch.fetch_store(bucket.uri, tmp_path / "fetched")
    asked = [
        where
        for method, path, where in proxy.requests
        if method == "GET" and f"{own.name}/domains/{name}" in path
    ]
    pieces = -(-size // 10_000)
    assert len(set(asked)) == pieces > 20 and 3 * pieces <= len(asked) <= 4 * pieces
    assert (tmp_path / "fetched/domains" / name).read_bytes() == (own / "domains" / name).read_bytes()


def test_a_file_altered_there_is_refused(bucket, s3, own, tmp_path):
    publish_store(own, bucket)
    name = f"domains/{partition_path(4)}"
    data = (own / name).read_bytes()
    s3.put_object(Bucket=BUCKET, Key=f"{own.name}/{name}", Body=data[:-1] + b"x")
    with pytest.raises(StoreError, match=f"^{bucket.uri}/{name} is not the file of its manifest"):
        fetch_store(bucket.uri, tmp_path / "fetched")
    assert not (tmp_path / "fetched/domains").exists()


def test_a_full_disk_here_is_no_failure_there(bucket, own, tmp_path, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    publish_store(own, bucket)
    monkeypatch.setattr(fetch, "written_aside", full)
    with pytest.raises(StoreError, match=f"^The disk of {tmp_path}/fetched/.* is full"):
        fetch_store(bucket.uri, tmp_path / "fetched")


def test_where_nothing_is_there_is_no_store(bucket, tmp_path):
    assert not fetch_store(bucket.uri, tmp_path / "fetched")
