"""An audit passes a store as it was built, and finds each thing that could be wrong with it."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from pipeline.reports.audit import audit_store
from storage_schema.domains import DomainStore, partition_path
from storage_schema.manifest import StoreError, file_digest, read_manifest
from tests.toy_store import in_version_1, replace_batch, write_index


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
    path = opened.folder / partition_path(int(opened.volumes[0].file_K[domain]))
    return domain, path, opened.volumes[0].batch(domain)


def index_of(folder):
    data = (folder / "domains/index.arrow").read_bytes()
    return pa.ipc.open_file(pa.py_buffer(data)).read_all().to_pydict()


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
    domain, _, batch = largest(copy)
    rows = pa.Table.from_batches([batch]).take(pa.array(range(1, len(batch)))).combine_chunks()
    replace_batch(copy, domain, rows.to_batches()[0])
    sign(copy, "domains")
    with pytest.raises(
        StoreError, match=f"domain {domain}.*does not hold its .* tokens where they should be"
    ):
        audit_store(copy)


@pytest.mark.parametrize("row", [0, 3])
def test_a_passage_that_a_domain_holds_twice_is_the_one_that_is_named(copy, row):
    domain, _, batch = largest(copy)
    ids = batch.column("passage_id").to_numpy().copy()
    ids[row + 1] = ids[row]
    replace_batch(copy, domain, batch.set_column(0, batch.schema.field(0), pa.array(ids)))
    sign(copy, "domains")
    with pytest.raises(StoreError, match=rf"domain {domain} holds a passage twice, .* such as {ids[row]}\."):
        audit_store(copy)


def test_a_partition_with_other_passages(copy):
    domain, _, batch = largest(copy)
    ids = batch.column("passage_id").to_numpy() + (1 << 40)
    replace_batch(copy, domain, batch.set_column(0, batch.schema.field(0), pa.array(ids)))
    sign(copy, "domains")
    with pytest.raises(StoreError, match=f"domain {domain} .* passage {ids[0]}, which does not exist"):
        audit_store(copy)


def test_passages_that_are_in_no_domain(copy):
    domain, path, batch = largest(copy)
    columns = index_of(copy)
    columns["passages"][domain] = columns["tokens"][domain] = 0
    write_index(copy / "domains", list(columns.values()))
    sign(copy, "domains")
    with pytest.raises(StoreError, match=f"domain {domain} has no passages in the index, but some in {path}"):
        audit_store(copy)
    replace_batch(copy, domain, batch.slice(0, 0))
    sign(copy, "domains")
    with pytest.raises(StoreError, match=f"{len(batch)} passages are in no domain"):
        audit_store(copy)


def test_a_domain_without_passages_that_has_tokens(copy):
    """A run would draw windows of it."""
    columns = index_of(copy)
    domain = int(np.argmax(columns["passages"]))
    columns["passages"][domain] = 0
    write_index(copy / "domains", list(columns.values()))
    sign(copy, "domains")
    replace_batch(copy, domain, DomainStore(copy).volumes[0].batch(domain).slice(0, 0))
    write_index(copy / "domains", list(columns.values()))
    sign(copy, "domains")
    with pytest.raises(StoreError, match=f"domain {domain} has no passages in the index, but some in"):
        audit_store(copy)


@pytest.mark.parametrize("harm", ["offsets beyond the tokens", "nulls among the tokens"])
def test_lists_that_are_not_of_the_tokens(copy, harm):
    domain, path, batch = largest(copy)
    columns, tokens = index_of(copy), batch.column("tokens")
    values = tokens.values.to_pylist()
    if harm == "nulls among the tokens":
        values[-1] = None
    changed = pa.LargeListArray.from_arrays(tokens.offsets, pa.array(values, pa.uint16()))
    replace_batch(copy, domain, batch.set_column(4, batch.schema.field(4), changed))
    if harm == "offsets beyond the tokens":
        data = bytearray(path.read_bytes())
        at, last = index_of(copy)["tokens_at"][domain], columns["tokens"][domain]
        data[at - 8 : at] = (last - 3).to_bytes(8, "little")
        path.write_bytes(data)
        columns["tokens"][domain] -= 3
    columns["tokens_at"] = index_of(copy)["tokens_at"]
    write_index(copy / "domains", list(columns.values()))
    sign(copy, "domains")
    with pytest.raises(StoreError, match=f"domain {domain}: .* does not hold"):
        audit_store(copy)


def test_tokens_that_are_another_domains(copy):
    """Both have as many, and end alike: the index leads from one to the other's."""
    domain, _, batch = largest(copy)
    volume = DomainStore(copy).volumes[0]
    other = next(n for n in np.flatnonzero(volume.file_K == volume.file_K[domain]).tolist() if n != domain)
    tokens = batch.column("tokens")
    values = tokens.values.to_numpy().copy()
    values[0] ^= 1
    changed = pa.LargeListArray.from_arrays(tokens.offsets, pa.array(values))
    replace_batch(copy, other, batch.set_column(4, batch.schema.field(4), changed))
    columns = index_of(copy)
    for name in ("passages", "tokens"):
        columns[name][other] = columns[name][domain]
    columns["tokens_at"][domain] = columns["tokens_at"][other]
    write_index(copy / "domains", list(columns.values()))
    sign(copy, "domains")
    with pytest.raises(StoreError, match=f"domain {domain}: .* does not hold {len(batch)} passages"):
        audit_store(copy)


def test_a_store_of_schema_version_1(copy):
    checked = audit_store(copy)
    in_version_1(copy)
    again = audit_store(copy)
    assert again.pop("files") > checked.pop("files") and again.pop("bytes") and checked.pop("bytes")
    assert again == checked


def test_stages_that_are_not_of_each_other(copy):
    manifest = read_manifest(copy / "domains", "domains")
    (copy / "domains" / "manifest.json").write_text(
        replace(manifest, inputs={"passages": "0" * 64}).to_json()
    )
    with pytest.raises(StoreError, match="made from other passages"):
        audit_store(copy)
