"""An audit passes a store as it was built, and finds each thing that could be wrong with it."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from pipeline.domains.scatter import write_batch
from pipeline.reports.audit import audit_store
from storage_schema.domains import DomainStore, partition_path
from storage_schema.manifest import StoreError, file_digest, read_manifest


@pytest.fixture
def store(planted_store):
    return planted_store


@pytest.fixture()
def copy(store, tmp_path):
    shutil.copytree(store.folder.parent, tmp_path / "store")
    return tmp_path / "store"


def largest(folder):
    opened = DomainStore(folder)
    domain = int(np.argmax(opened.passages_K))
    return domain, opened.folder / partition_path(domain), opened.volumes[0].batch(domain)


def sign(folder, stage):
    """Make the manifest agree with the files, as one who forges the store would."""
    manifest = read_manifest(folder / stage, stage)
    paths = {entry.path: folder / stage / entry.path for entry in manifest.files}
    files = tuple(
        replace(entry, bytes=paths[entry.path].stat().st_size, sha256=file_digest(paths[entry.path]))
        for entry in manifest.files
    )
    (folder / stage / "manifest.json").write_text(replace(manifest, files=files).to_json())


def test_a_store_as_it_was_built(store):
    progress = []
    checked = audit_store(store.folder.parent, report=lambda done, total: progress.append((done, total)))
    assert checked["passages"] == store.passages_K.sum() and checked["domains"] == store.num_domains
    assert checked["tokens"] == store.tokens_K.sum() and checked["bytes"] > 2 * checked["tokens"]
    assert [done for done, _ in progress] == list(range(1, progress[-1][1] + 1))


def test_an_altered_byte(copy):
    _, path, _ = largest(copy)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match=f"{path.name} was altered"):
        audit_store(copy)


def test_a_missing_file(copy):
    largest(copy)[1].unlink()
    with pytest.raises(StoreError, match="is missing"):
        audit_store(copy)


def test_a_partition_with_a_passage_too_few(copy):
    domain, path, batch = largest(copy)
    rows = pa.Table.from_batches([batch]).take(pa.array(range(1, len(batch)))).combine_chunks()
    write_batch(path, rows.to_batches()[0])
    sign(copy, "domains")
    with pytest.raises(StoreError, match=f"domain {domain}.*holds .* tokens, the index says"):
        audit_store(copy)


@pytest.mark.parametrize("row", [0, 3])
def test_a_passage_that_a_domain_holds_twice_is_the_one_that_is_named(copy, row):
    domain, path, batch = largest(copy)
    ids = batch.column("passage_id").to_numpy().copy()
    ids[row + 1] = ids[row]
    write_batch(path, batch.set_column(0, batch.schema.field(0), pa.array(ids)))
    sign(copy, "domains")
    with pytest.raises(StoreError, match=rf"domain {domain} holds a passage twice, .* such as {ids[row]}\."):
        audit_store(copy)


def test_a_partition_with_other_passages(copy):
    domain, path, batch = largest(copy)
    ids = batch.column("passage_id").to_numpy() + (1 << 40)
    write_batch(path, batch.set_column(0, batch.schema.field(0), pa.array(ids)))
    sign(copy, "domains")
    with pytest.raises(StoreError, match=f"domain {domain} .* passage {ids[0]}, which does not exist"):
        audit_store(copy)


def test_passages_that_are_in_no_domain(copy):
    domain, path, batch = largest(copy)
    path.unlink()
    folder = copy / "domains"
    index = pa.ipc.open_file(str(folder / "index.arrow")).read_all().to_pydict()
    index["passages"][domain] = index["tokens"][domain] = 0
    schema = pa.ipc.open_file(str(folder / "index.arrow")).schema
    write_batch(folder / "index.arrow", pa.record_batch(pa.table(index, schema=schema).to_batches()[0]))
    manifest = read_manifest(folder, "domains")
    kept = tuple(entry for entry in manifest.files if entry.path != partition_path(domain))
    (folder / "manifest.json").write_text(replace(manifest, files=kept).to_json())
    sign(copy, "domains")
    with pytest.raises(StoreError, match=f"{len(batch)} passages are in no domain"):
        audit_store(copy)


def test_stages_that_are_not_of_each_other(copy):
    manifest = read_manifest(copy / "domains", "domains")
    (copy / "domains" / "manifest.json").write_text(
        replace(manifest, inputs={"passages": "0" * 64}).to_json()
    )
    with pytest.raises(StoreError, match="made from other passages"):
        audit_store(copy)
