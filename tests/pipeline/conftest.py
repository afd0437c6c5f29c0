"""A planted store, and fixtures of the tests of stores on S3 (``s3`` and ``server`` are all rooms')."""

from __future__ import annotations

import shutil

import pytest

from pipeline.places import buckets, locations, retries
from storage_schema.stage import open_stage
from tests.flaky_proxy import proxy_to
from tests.pipeline.planted_store import planted, planted_store  # noqa: F401  (fixtures)
from tests.remote_stores import MORE, SIZES, VOCAB, upload_once, write_part
from tests.s3_server import upload


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """A store of each token type, with an addition."""
    folders = {}
    for dtype in VOCAB:
        folders[dtype] = tmp_path_factory.mktemp(dtype)
        first = write_part(folders[dtype], SIZES, dtype, {})
        for kind, name in (("tokenizer", "tokenizer.json"), ("embeddings", "part-00000.arrow")):
            stage = open_stage(folders[dtype] / kind, kind=kind, configuration={}, inputs={})
            (stage.work / name).write_text(f"the {kind}")
            stage.finish({})
        write_part(folders[dtype] / "additions" / "0001", MORE, dtype, {"tree": first.digest})
    return folders


@pytest.fixture(scope="module")
def uploaded():
    """Names of the stores that are on the module's server."""
    return set()


@pytest.fixture
def in_haste(tmp_path, monkeypatch):
    """Mirrors are the test's own, waits are short, and the S3 clients do not try again by themselves."""
    monkeypatch.setenv("SOE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(retries, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(locations, "ATTEMPTS", 1)
    monkeypatch.setattr(buckets, "RETRIES", 0)
    monkeypatch.setattr(buckets, "CREATE_SECONDS", 0.01)
    locations._s3.cache_clear()


@pytest.fixture
def folder(stores):
    """The uint16 store; not to be changed."""
    return stores["uint16"]


@pytest.fixture
def uri(s3, folder, uploaded):
    return upload_once(s3, folder, uploaded)


@pytest.fixture
def own(folder, tmp_path):
    """A copy of it, whose name no other test has on the server."""
    return shutil.copytree(folder, tmp_path / tmp_path.name)


@pytest.fixture
def own_uri(s3, own):
    return upload(s3, own)


@pytest.fixture
def proxy(server, s3, monkeypatch):
    with proxy_to(server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy
