"""The small files of a store on S3, on this machine."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading

import pytest

from pipeline.remote.store import open_store
from storage_schema.domains import DomainStore
from storage_schema.manifest import StoreError
from tests.remote_stores import SIZES, check_all, write_part
from tests.s3_server import BUCKET, upload

pytestmark = pytest.mark.usefixtures("in_haste")


def test_opening_again_downloads_nothing(uri, proxy):
    first = open_store(uri)
    assert proxy.of("index.arrow") == proxy.of("tree.arrow") == proxy.of("tokenizer.json") * 2 == 2
    assert proxy.of("embeddings/manifest.json") == 1 and proxy.of("part-00000") == 0
    proxy.requests.clear()
    second = open_store(uri + "/")
    assert second.mirror == first.mirror and second.digest == first.digest
    assert proxy.of("/domains/manifest.json") == 2 and len(proxy.requests) <= 13
    assert not any(proxy.of(name) for name in (".arrow", "tokenizer", "embeddings"))
    assert (second.folder.parent / "tokenizer/tokenizer.json").read_text() == "the tokenizer"


def test_processes_that_open_at_once_share_one_mirror(uri, proxy, folder):
    proxy.latency = 0.05
    program = (
        "import sys; from pipeline.remote.store import open_store; print(open_store(sys.argv[1]).digest)"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", program, uri], stdout=subprocess.PIPE, text=True)
        for _ in "12"
    ]
    assert [process.communicate(timeout=60)[0].strip() for process in started] == [
        DomainStore(folder).digest
    ] * 2
    assert proxy.of("index.arrow") == 2  # one of each part


def test_threads_that_open_at_once_share_one_mirror(uri, proxy):
    proxy.latency, found = 0.02, []
    threads = [threading.Thread(target=lambda: found.append(open_store(uri).digest)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(set(found)) == 1 and proxy.of("index.arrow") == 2


def test_a_mirror_that_was_cut_off_is_made_anew(uri, proxy, folder):
    proxy.rule = lambda method, path, where, seen: "busy" if "tokenizer.json" in path else None
    with pytest.raises(StoreError, match=f"cannot read {uri}/tokenizer/tokenizer.json after 5 attempts"):
        open_store(uri)
    proxy.rule = lambda *_: None
    check_all(open_store(uri), folder)


def test_an_addition_is_seen_and_a_run_begun_before_goes_on_without(s3, own):
    away = own.parent / "additions"
    shutil.move(own / "additions", away)
    own_uri = upload(s3, own)
    before = open_store(own_uri)
    shutil.move(away, own / "additions")
    upload(s3, own)
    after = open_store(own_uri)
    assert len(before.volumes) == 1 and len(after.volumes) == 2
    assert after.digest == DomainStore(own).digest != before.digest
    assert open_store(own_uri, num_volumes=1).digest == before.digest
    check_all(after, own)
    assert before.tree.num_domains == 6  # read only now: its mirror is still there


def test_a_rebuilt_store_is_noticed(s3, own_uri, own):
    before = open_store(own_uri)
    shutil.rmtree(own / "domains")
    shutil.rmtree(own / "additions")
    for found in s3.list_objects_v2(Bucket=BUCKET, Prefix=f"{own.name}/additions/")["Contents"]:
        s3.delete_object(Bucket=BUCKET, Key=found["Key"])
    write_part(own, SIZES[::-1], "uint16", {})
    upload(s3, own)
    assert open_store(own_uri).digest == DomainStore(own).digest != before.digest


@pytest.mark.parametrize("name", ["index.arrow", "manifest.json"])
def test_a_damaged_small_file_is_refused(s3, own_uri, own, name):
    data = bytearray((own / "domains" / name).read_bytes())
    data[data.rindex(b"tokens")] ^= 1
    s3.put_object(Bucket=BUCKET, Key=f"{own.name}/domains/{name}", Body=data)
    with pytest.raises(
        StoreError, match=f"^{own_uri}/domains/{name} (is not the file of its manifest|was altered)"
    ):
        open_store(own_uri)


@pytest.mark.parametrize(
    "name",
    [
        "domains/manifest.json",
        "tokenizer/manifest.json",
        "domains/tree.arrow",
        "additions/0001/domains/manifest.json",
    ],
)
def test_half_a_copy_is_refused(s3, own_uri, own, name):
    s3.delete_object(Bucket=BUCKET, Key=f"{own.name}/{name}")
    with pytest.raises(StoreError, match=f"^{own_uri}/{name} is missing. Copy the whole"):
        open_store(own_uri)


def test_places_that_are_none(s3, folder):
    with pytest.raises(StoreError, match="^s3://nowhere/x/domains/manifest.json is missing"):
        open_store("s3://nowhere/x")
    with pytest.raises(ValueError, match="^The store's S3 URI holds credentials"):
        open_store("s3://me:mine@texts/x")
    with pytest.raises(ValueError, match="^The store 'ftp://host/x' cannot be opened"):
        open_store("ftp://host/x")
