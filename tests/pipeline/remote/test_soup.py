"""Soups on S3, fetched once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.remote.soup import fetch_soup
from storage_schema.manifest import StoreError, read_manifest
from storage_schema.stage import open_stage
from tests.s3_server import BUCKET, upload

pytestmark = pytest.mark.usefixtures("in_haste")


def make_soup(folder, content="its parameters"):
    """As far as fetching is concerned: a manifest and two files."""
    stage = open_stage(folder, kind="soup", configuration={"content": content}, inputs={}, rebuild=True)
    (stage.work / "shared.safetensors").write_text(content)
    (stage.work / "tree.arrow").write_text("its tree")
    stage.finish({})
    return folder


@pytest.fixture
def soup(tmp_path):
    """Its name no other test has on the server."""
    return make_soup(tmp_path / f"{tmp_path.name}-soup")


def test_a_soup_is_fetched_once(soup, s3, proxy):
    uri = upload(s3, soup)
    reported = []
    here = fetch_soup(uri, report=lambda done, total: reported.append((done, total)))
    assert here.name == soup.name and reported[-1] == (1, 1)
    assert {p.name: p.read_bytes() for p in here.iterdir()} == {
        p.name: p.read_bytes() for p in soup.iterdir()
    }
    proxy.requests.clear()
    assert fetch_soup(uri + "/") == here
    assert proxy.of("soup.json") == 1 and proxy.of("safetensors") == proxy.of("arrow") == 0


def test_a_soup_that_was_replaced_is_fetched_anew(soup, s3, proxy):
    before = fetch_soup(upload(s3, soup))
    after = fetch_soup(upload(s3, make_soup(soup, "others")))
    assert after != before and (before / "shared.safetensors").read_text() == "its parameters"
    assert read_manifest(after, "soup").digest == read_manifest(soup, "soup").digest


def test_two_that_fetch_at_once_fetch_once(soup, s3, proxy):
    """Threads; a lock keeps them apart as it does processes, for each has opened it itself."""
    uri, proxy.latency = upload(s3, soup), 0.05
    with ThreadPoolExecutor(2) as pool:
        found = set(pool.map(fetch_soup, [uri] * 2))
    assert found == {fetch_soup(uri)} and proxy.of("shared.safetensors") == 1


def test_a_soup_that_is_not_whole_is_refused_by_name(soup, s3):
    uri = upload(s3, soup)
    s3.put_object(Bucket=BUCKET, Key=f"{soup.name}/tree.arrow", Body=b"its twig")
    with pytest.raises(StoreError, match=f"^{uri}/tree.arrow is not the file of its manifest"):
        fetch_soup(uri)
    s3.delete_object(Bucket=BUCKET, Key=f"{soup.name}/tree.arrow")
    with pytest.raises(StoreError, match=f"^{uri}/tree.arrow is missing. Copy the whole of a finished soup"):
        fetch_soup(uri)
    with pytest.raises(StoreError, match=f"^{uri}/x/soup.json is missing"):
        fetch_soup(f"{uri}/x")
    s3.put_object(Bucket=BUCKET, Key=f"{soup.name}/tree.arrow", Body=b"its tree")
    assert (fetch_soup(uri) / "tree.arrow").read_text() == "its tree"
