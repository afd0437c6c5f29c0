"""Corpora on S3, served by moto on loopback."""

from __future__ import annotations

import gzip
import json
import logging
import os
import socket
import time

import moto.settings
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.corpus import raw_files
from pipeline.corpus.accounts import Losses
from pipeline.corpus.documents import BadDocument
from pipeline.corpus.listing import open_corpus
from pipeline.corpus.readers import read_documents
from pipeline.passages.extraction import extract_group
from pipeline.places import locations, retries
from tests.s3_server import BUCKET, upload
from tests.toy_corpora import KINDS, read_all, save_dataset


@pytest.mark.parametrize("kind", KINDS)
def test_documents_are_the_same_on_s3_and_on_disk(s3, tmp_path, kind):
    folder = tmp_path / f"corpus-{kind}"
    folder.mkdir()
    KINDS[kind](folder)
    uri = upload(s3, folder)
    found = read_all(uri)
    assert found == read_all(folder) and len(found) > 2
    assert read_all(uri + "/") == found
    local, remote = open_corpus(str(folder)), open_corpus(uri)
    assert [(f.name, f.bytes) for f in remote.files] == [(f.name, f.bytes) for f in local.files]
    assert remote.digest == open_corpus(uri).digest
    for name, corpus in (("local", local), ("remote", remote)):
        losses = Losses(max_bad_documents=10, max_damaged_files=0)
        extract_group(corpus, str(tmp_path / name), 100, losses)
    assert (tmp_path / "local").read_bytes() == (tmp_path / "remote").read_bytes()


@pytest.mark.parametrize("name", ["a.jsonl.gz", "t.parquet", "notes.txt"])
def test_a_single_file(s3, tmp_path, name):
    (tmp_path / "one").mkdir()
    for kind in ("lines-gz", "parquet"):
        KINDS[kind](tmp_path / "one")
    (tmp_path / "one" / "notes.txt").write_text("a note")
    uri = upload(s3, tmp_path / "one")
    assert read_all(f"{uri}/{name}") == read_all(tmp_path / "one" / name) != []


def test_truncated_gz_is_one_bad_document(s3, tmp_path):
    folder = tmp_path / "cut"
    folder.mkdir()
    content = "".join(json.dumps({"text": os.urandom(300).hex()}) + "\n" for _ in range(2000)).encode()
    (folder / "cut.jsonl.gz").write_bytes(gzip.compress(content)[:300_000])
    *documents, bad = found = read_all(upload(s3, folder))
    assert found == read_all(folder) and 0 < len(documents) < 2000
    assert isinstance(bad, BadDocument) and "runcated" in bad.problem


@pytest.mark.parametrize("kind", ["lines", "parquet", "arrow"])
def test_files_are_read_as_streams(s3, tmp_path, monkeypatch, caplog, kind):
    """The first document comes after a small part of the requests that the whole file takes."""
    monkeypatch.setattr(raw_files, "ASKED_BYTES", 1 << 16)
    folder = tmp_path / f"large-{kind}"
    folder.mkdir()
    records = [{"text": os.urandom(2000).hex()} for _ in range(400)]
    if kind == "lines":
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(records), folder / "a.parquet", row_group_size=20)
    else:
        save_dataset(folder, records, shards=1, batch=20)
    corpus = open_corpus(upload(s3, folder))
    requests = f"GET /{BUCKET}/{corpus.files[0].path.partition('/')[2]} "
    with caplog.at_level(logging.INFO, "werkzeug"):
        documents = read_documents(corpus, corpus.files[0])
        next(documents)
        first = caplog.text.count(requests)
        assert sum(1 for _ in documents) == 399
    assert 0 < 3 * first < caplog.text.count(requests)


def test_what_does_not_exist_is_named(s3):
    with pytest.raises(ValueError, match="'s3://nowhere/x' does not exist: http://127.*no bucket 'nowhere'"):
        open_corpus("s3://nowhere/x")
    with pytest.raises(ValueError, match="'s3://nowhere' does not exist.*no bucket"):
        open_corpus("s3://nowhere")
    with pytest.raises(ValueError, match="'s3://texts/absent' does not exist. Give the path"):
        open_corpus("s3://texts/absent")
    s3.put_object(Bucket=BUCKET, Key="empty/nothing.txt", Body=b"")
    with pytest.raises(ValueError, match="'s3://texts/empty' is empty"):
        open_corpus("s3://texts/empty")


def test_refused_credentials_are_named_at_once_and_while_reading(s3, monkeypatch):
    s3.put_object(Bucket=BUCKET, Key="secret/a.txt", Body=b"text")
    corpus = open_corpus("s3://texts/secret")
    monkeypatch.setattr(retries, "FIRST_DELAY", 0)
    monkeypatch.setattr(moto.settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)
    refused = "'s3://texts/secret' refuses the credentials.*Set AWS_ACCESS_KEY_ID.*every node"
    with pytest.raises(ValueError, match=refused):
        open_corpus("s3://texts/secret")
    with pytest.raises(ValueError, match=refused):
        list(read_documents(corpus, corpus.files[0]))


@pytest.mark.parametrize("server_is", ["absent", "silent"])
def test_unreachable_endpoint_is_named_within_a_bounded_time(s3, monkeypatch, server_is):
    s3.put_object(Bucket=BUCKET, Key="far/a.txt", Body=b"text")
    corpus = open_corpus("s3://texts/far")
    monkeypatch.setattr(locations, "STALLED_SECONDS", 1.0)
    monkeypatch.setattr(locations, "ATTEMPTS", 2)
    monkeypatch.setattr(retries, "ATTEMPTS", 2)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if server_is == "silent":
            listener.listen()
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:{1}".format(*listener.getsockname()))
        start = time.monotonic()
        with pytest.raises(
            ValueError, match="'s3://texts/far' cannot be reached at http://127.*AWS_ENDPOINT"
        ):
            open_corpus("s3://texts/far")
        with pytest.raises(ValueError, match="'s3://texts/far' cannot be reached"):
            list(read_documents(corpus, corpus.files[0]))
    assert time.monotonic() - start < 20


def test_a_file_that_went_is_a_bad_document(s3):
    for key in ("gone/a.txt", "gone/b.txt"):
        s3.put_object(Bucket=BUCKET, Key=key, Body=b"text")
    corpus = open_corpus("s3://texts/gone")
    s3.delete_object(Bucket=BUCKET, Key="gone/a.txt")
    [bad] = read_documents(corpus, corpus.files[0])
    assert bad.where == "a.txt" and "does not exist" in bad.problem


def test_keys_that_no_folder_could_hold(s3):
    for key in ("odd/", "odd/d/", "odd/d//x.txt", "odd/y.txt", "odd/y.txt/z.txt"):
        s3.put_object(Bucket=BUCKET, Key=key, Body=b"" if key.endswith("/") else b"text")
    bad, *documents = read_all("s3://texts/odd")
    assert isinstance(bad, BadDocument) and bad.where == "d//x.txt"
    assert [document.document_id for document in documents] == ["y.txt", "y.txt/z.txt"]


@pytest.mark.parametrize(
    ("endpoint", "problem"),
    [
        ("http://192.0.2.7:9000", "plain http is only for this machine.*Use https"),
        ("http://localhost.example.org", "plain http"),
        ("127.0.0.1:9000", "not a URL"),
        ("http://me:mine@127.0.0.1:9000", "not a URL"),
        ("https://s3.example.org/bucket", "an endpoint has no path"),
    ],
)
def test_endpoints_that_are_refused(monkeypatch, endpoint, problem):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    with pytest.raises(ValueError, match=f"AWS_ENDPOINT_URL_S3 is .*{problem}"):
        open_corpus("s3://texts/x")


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("s3://", "names no bucket"),
        ("s3://texts/x?endpoint_override=127.0.0.1", "has options.*AWS_ENDPOINT_URL"),
        ("s3://me:mine@texts/x", "holds credentials"),
    ],
)
def test_uris_that_are_refused(s3, uri, problem):
    with pytest.raises(ValueError, match=problem) as raised:
        open_corpus(uri)
    assert "mine" not in str(raised.value)


def test_region_is_the_variables_else_the_buckets(s3, monkeypatch):
    asked = []
    monkeypatch.setattr(locations.fs, "resolve_s3_region", lambda bucket: asked.append(bucket) or "eu-west-3")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    filesystem, path = locations.open_filesystem("s3://region-of-mine/a/b/")
    assert (filesystem.region, path) == ("us-east-1", "region-of-mine/a/b") and asked == []
    monkeypatch.delenv("AWS_REGION")
    assert locations.open_filesystem("s3://region-of-mine/a")[0].region == "eu-west-3"
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-north-1")
    assert locations.open_filesystem("s3://region-of-mine/a")[0].region == "eu-north-1"
    assert asked == ["region-of-mine"]


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        ("AWS Error UNKNOWN (HTTP status 301) during HeadBucket", "lies in another region.*Set AWS_REGION"),
        ("AWS Error SIGNATURE_DOES_NOT_MATCH during ListObjectsV2", "refuses the credentials"),
        ("AWS Error SLOW_DOWN during GetObject operation", "cannot be read.*run again"),
    ],
)
def test_errors_that_moto_does_not_make(error, problem):
    with pytest.raises(ValueError, match=f"'s3://texts/x' {problem}"):
        raise locations.explain("s3://texts/x", OSError(error))
