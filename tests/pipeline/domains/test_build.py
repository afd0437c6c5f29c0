"""Domains of the planted corpus, embedded as hashed bags of words: exact, fast, enough for the tree."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from pipeline.domains import fitting
from pipeline.domains.scatter import scatter_part
from pipeline.embeddings.build import read_embeddings, write_embeddings
from pipeline.specialists.domain_weights import assign_to_domains
from pipeline.tokenizer import load_tokenizer
from storage_schema.corpus import part_files
from storage_schema.domains import DomainStore, partition_path, partition_schema
from storage_schema.manifest import StoreError, verify_files
from storage_schema.stage import SCRATCH
from storage_schema.tree import Tree
from tests.pipeline.planted_store import LANGUAGES, TREE, linked, partition


@pytest.fixture
def store(planted_store):
    return planted_store


def rows_of(store, domain):
    return store.passages(domain) if store.passages_K[domain] else None


def adjusted_rand_index(first, second):
    """Hubert & Arabie 1985, from the contingency table; 1 is equality, 0 what chance gives."""
    table = np.zeros((first.max() + 1, second.max() + 1), np.int64)
    np.add.at(table, (first, second), 1)

    def pairs(counts):
        return (counts * (counts - 1) / 2).sum()

    together, rows, columns = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    expected = rows * columns / pairs(np.array([len(first)]))
    return (together - expected) / ((rows + columns) / 2 - expected)


def test_the_tree_recovers_the_planted_languages(store):
    coarse, language = [], []
    for domain in range(store.num_domains):
        table = rows_of(store, domain)
        if table is not None:
            coarse += [domain // TREE.leaf_clusters] * len(table)
            language += [int(source.removeprefix("language-")) for source in table["source"].to_pylist()]
    assert len(set(language)) == LANGUAGES
    assert adjusted_rand_index(np.array(coarse), np.array(language)) > 0.99


def test_every_training_passage_is_in_exactly_one_domain_as_its_tokens(store, planted):
    tokenizer = load_tokenizer(planted / "tokenizer")
    passages = pl.read_parquet(part_files(planted / "passages", "train"))
    texts = dict(zip(passages["passage_id"], passages["text"], strict=True))
    for domain in range(store.num_domains):
        table = rows_of(store, domain)
        if table is None:
            continue
        ids = table["passage_id"].to_pylist()
        assert ids == sorted(ids) and len(ids) == store.passages_K[domain]
        for number, tokens in zip(ids, table["tokens"].to_pylist(), strict=True):
            assert tokens[-1] == tokenizer.end_of_text
            assert tokenizer.decode(np.array(tokens)) == texts.pop(number)
    assert not texts


def test_partitions_are_uncompressed_batches_of_a_nodes_file_whose_child_buffers_are_the_streams(store):
    for domain in np.flatnonzero(store.passages_K):
        node, leaf = divmod(int(domain), TREE.leaf_clusters)
        path = store.folder / partition_path(node)
        with pa.ipc.open_file(pa.memory_map(str(path))) as file:
            assert file.num_record_batches == TREE.leaf_clusters
            assert file.schema == partition_schema(store.vocab_size)
            lists = file.get_batch(leaf).column("tokens")
        stream = store.volumes[0].tokens(int(domain))
        assert stream.dtype == np.uint16 and not stream.flags.owndata
        assert np.concatenate(lists.to_numpy(zero_copy_only=False)).tolist() == stream.tolist()
        assert len(stream) == store.tokens_K[domain]
    assert (store.windows_K(16) == np.maximum(store.tokens_K - 1, 0) // 16).all()


def test_tree_manifest_and_index_agree(store, planted):
    tree, counts = store.tree, store.manifest.counts
    assert (tree.counts_K == store.passages_K).all()
    assert (
        counts["passages"]
        == tree.counts_K.sum()
        == len(pl.read_parquet(part_files(planted / "passages", "train")))
    )
    assert counts["tokens"] == store.tokens_K.sum()
    assert counts["domains"] == store.num_domains == 12
    assert counts["empty_domains"] == (store.passages_K == 0).sum()
    assert counts["imbalance"] == pytest.approx(tree.imbalance, abs=1e-6)
    assert store.manifest.configuration["vocab_size"] == 300
    verify_files(store.folder, store.manifest)
    assert {path.name for path in store.folder.iterdir()} == {
        "tree.arrow",
        "index.arrow",
        "manifest.json",
        *(
            partition_path(node)
            for node in np.flatnonzero(store.passages_K.reshape(-1, TREE.leaf_clusters).sum(1))
        ),
    }


def test_the_histogram_of_the_corpus_is_its_domain_sizes(store, planted):
    vectors = np.concatenate(
        [read_embeddings(p)[1] for p in sorted((planted / "embeddings").glob("*.arrow"))]
    )
    weights = assign_to_domains(vectors, store.tree, rule="tree").domain_weights
    assert (np.round(weights * len(vectors)) == store.passages_K).all()
    domain = int(np.argmax(store.passages_K))
    distances = rows_of(store, domain)["distance"].to_numpy()
    assert distances.mean() == pytest.approx(store.tree.mean_distance_K[domain], rel=1e-5)


def test_same_seed_gives_the_same_bytes_also_after_a_crash(store, planted, tmp_path, monkeypatch):
    linked(planted, tmp_path)

    def crash(*_):
        raise RuntimeError("killed")

    monkeypatch.setattr(Tree, "write", crash)
    with pytest.raises(RuntimeError, match="killed"):
        partition(tmp_path)
    monkeypatch.undo()
    work = tmp_path / "domains.partial"
    parts = len(part_files(planted / "passages", "train"))
    assert len([*(work / SCRATCH).glob("*.arrow")]) == parts  # whatever the number of nodes
    written = {path: path.stat().st_mtime_ns for path in work.glob("node-*")}
    assert written and not (tmp_path / "domains").exists()
    again = partition(tmp_path)
    assert [file.sha256 for file in again.files] == [file.sha256 for file in store.manifest.files]
    final = {
        work / p.relative_to(tmp_path / "domains"): p.stat().st_mtime_ns
        for p in (tmp_path / "domains").glob("node-*")
    }
    assert final == written


def test_what_an_earlier_release_began_is_not_mixed_in(store, planted, tmp_path, monkeypatch):
    """It put each domain into a file, and remembered nodes that it had written."""
    linked(planted, tmp_path)
    monkeypatch.setattr(Tree, "write", Mock(side_effect=RuntimeError("killed")))
    with pytest.raises(RuntimeError, match="killed"):
        partition(tmp_path)
    monkeypatch.undo()
    work = tmp_path / "domains.partial"
    (work / "domain=0003").mkdir()
    (work / "domain=0003/part-00000.arrow").write_bytes(b"a partition")
    done = work / SCRATCH / "node-00001.npz"
    np.savez(done, counts_k=np.ones(4, np.int64))
    monkeypatch.setattr(Tree, "write", Mock(side_effect=RuntimeError("killed")))
    with pytest.raises(RuntimeError, match="killed"):
        partition(tmp_path)
    monkeypatch.undo()
    assert not done.exists() and not (work / "domain=0003").exists()
    assert partition(tmp_path).files == store.manifest.files


def test_progress_is_in_passages_and_each_counts_once(planted, tmp_path):
    said = []
    manifest = partition(linked(planted, tmp_path), report=lambda done, total: said.append((done, total)))
    passages = manifest.counts["passages"]
    assert {total for _, total in said} == {passages} and said[-1] == (passages, passages)
    assert said == sorted(said) and {int(passages * share) for share in (0.2, 0.6)} <= {
        done for done, _ in said
    }


def test_fewer_passages_than_domains(planted, tmp_path):
    linked(planted, tmp_path)
    with pytest.raises(
        ValueError, match=r"There are \d+ distinct .*fewer than the 4096 domains \(64 x 64\).*lower"
    ):
        partition(tmp_path, replace(TREE, coarse_clusters=64, leaf_clusters=64))


def test_fewer_distinct_embeddings_than_domains_and_empty_leaves(planted, tmp_path):
    for name in ("passages", "tokenizer"):
        (tmp_path / name).symlink_to(planted / name)
    (tmp_path / "embeddings").mkdir()
    distinct = np.eye(14, 64, dtype=np.float32)
    for source in sorted((planted / "embeddings").glob("*.arrow")):
        ids, vectors = read_embeddings(source)
        write_embeddings(str(tmp_path / "embeddings" / source.name), ids, distinct[np.arange(len(ids)) % 14])
    with pytest.raises(ValueError, match="There are 14 distinct embeddings.*fewer than the 16 domains"):
        partition(tmp_path, replace(TREE, leaf_clusters=4))
    manifest = partition(tmp_path, replace(TREE, coarse_clusters=2, leaf_clusters=7, sample=100))
    opened = DomainStore(tmp_path)
    empty = opened.passages_K == 0
    assert manifest.counts["empty_domains"] == empty.sum()
    assert np.isnan(opened.tree.leaves_KD[empty]).all() and np.isfinite(opened.tree.leaves_KD[~empty]).all()
    for domain in np.flatnonzero(empty).tolist():
        assert opened.volumes[0].batch(domain).num_rows == opened.tokens_K[domain] == 0


def test_embeddings_of_other_passages_are_refused(planted, tmp_path):
    for name in ("passages", "tokenizer"):
        (tmp_path / name).symlink_to(planted / name)
    (tmp_path / "embeddings").mkdir()
    for source in sorted(Path(planted / "embeddings").glob("*.arrow")):
        ids, vectors = read_embeddings(source)
        write_embeddings(str(tmp_path / "embeddings" / source.name), ids + 1, vectors)
    with pytest.raises(StoreError, match="of other passages"):
        partition(tmp_path)


def test_the_root_reserves_the_cores_that_it_uses(planted, tmp_path, monkeypatch):
    reserved = {}

    def here(function, arguments, *, num_cpus=1, **_):
        reserved[function.__name__] = num_cpus, arguments
        raise StopIteration

    monkeypatch.setattr(fitting, "run_tasks", here)
    monkeypatch.setattr(fitting, "share", lambda value: value)
    monkeypatch.setattr(fitting, "free_cores", lambda: 3)
    with pytest.raises(StopIteration):
        partition(linked(planted, tmp_path))
    [(cores, [(*_, threads)])] = reserved.values()
    assert [*reserved] == ["fit_root"] and cores == threads == 3


def test_passages_that_are_lost_between_the_steps_are_an_error(planted, tmp_path, monkeypatch):
    linked(planted, tmp_path)

    def forgetful(folders, source, tree):
        found = scatter_part(folders, source, tree)
        return found | {"rows_C": found["rows_C"] * (np.arange(len(tree.coarse_CD)) > 0)}

    monkeypatch.setattr("pipeline.domains.build.scatter_part", forgetful)
    with pytest.raises(StoreError, match=r"hold \d+ passages of \d+.*domains.partial.*Remove that folder"):
        partition(tmp_path)
