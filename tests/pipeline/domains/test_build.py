"""Domains of the planted corpus, embedded as hashed bags of words: exact, fast, enough for the tree."""

from __future__ import annotations

import os
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from pipeline.corpus.listing import open_corpus
from pipeline.domains import build, leaves
from pipeline.domains.build import build_domains
from pipeline.domains.leaves import TreeSettings, write_node
from pipeline.domains.scatter import Folders, scatter_part, scatter_schema, write_batch
from pipeline.embeddings.build import read_embeddings, write_embeddings
from pipeline.passages.build import build_passages
from pipeline.passages.selection import Selection
from pipeline.specialists.domain_weights import assign_to_domains
from pipeline.tasks import run_tasks
from pipeline.tokenizer import build_tokenizer, load_tokenizer
from pipeline.tree.kmeans import KMeansSettings
from storage_schema.corpus import part_files
from storage_schema.domains import DomainStore, partition_path, partition_schema
from storage_schema.manifest import StoreError, verify_files
from storage_schema.stage import SCRATCH, open_stage
from storage_schema.tree import Tree
from tests.planted import planted_languages, write_planted_corpus

LANGUAGES = 4
TREE = TreeSettings(
    coarse_clusters=LANGUAGES, leaf_clusters=3, kmeans=KMeansSettings(iterations=10), sample=10_000, seed=1
)


def bags_of_words(texts, size=64):
    counts = np.zeros((len(texts), size), np.float32)
    for row, text in enumerate(texts):
        for word in text.split():
            counts[row, zlib.crc32(word.encode()) % size] += 1
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def stage_of(folder, kind):
    return open_stage(
        folder / kind, kind=kind, configuration={"vocab_size": 300, "end_of_text": 0}, inputs={}
    )


def partition(folder, settings=TREE):
    stage = stage_of(folder, "domains")
    names = ("passages", "embeddings", "tokenizer")
    folders = Folders(**{name: str(folder / name) for name in names}, work=str(stage.work))
    return build_domains(stage, folders, settings)


@pytest.fixture(scope="module")
def prepared(ray_cluster, tmp_path_factory):
    """Passages, tokenizer and embeddings of a planted corpus."""
    folder = tmp_path_factory.mktemp("planted")
    languages = planted_languages(LANGUAGES, words=60)
    write_planted_corpus(folder / "c.jsonl", languages, documents_per_language=40, words_per_document=150)
    build_passages(
        stage_of(folder, "passages"),
        open_corpus(str(folder / "c.jsonl")),
        Selection(held_out_fraction=0.1),
        passage_characters=400,
        max_bad_documents=0,
    )
    build_tokenizer(
        stage_of(folder, "tokenizer"),
        folder / "passages",
        vocab_size=300,
        sample_characters=10**6,
        run=run_tasks,
    )
    embeddings = stage_of(folder, "embeddings")
    for part in part_files(folder / "passages", "train"):
        table = pl.read_parquet(part)
        target = embeddings.work / part.with_suffix(".arrow").name
        write_embeddings(str(target), table["passage_id"].to_numpy(), bags_of_words(table["text"].to_list()))
    embeddings.finish({})
    return folder


@pytest.fixture(scope="module")
def store(prepared):
    partition(prepared)
    return DomainStore(prepared)


def linked(prepared, folder):
    """A store folder that shares the finished stages of `prepared`."""
    for name in ("passages", "tokenizer", "embeddings"):
        (folder / name).symlink_to(prepared / name)
    return folder


def rows_of(store, domain):
    path = store.folder / partition_path(domain)
    return pa.ipc.open_file(str(path)).read_all() if store.passages_K[domain] else None


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


def test_every_training_passage_is_in_exactly_one_domain_as_its_tokens(store, prepared):
    tokenizer = load_tokenizer(prepared / "tokenizer")
    passages = pl.read_parquet(part_files(prepared / "passages", "train"))
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


def test_partitions_are_one_uncompressed_batch_whose_child_buffer_is_the_stream(store):
    for domain in np.flatnonzero(store.passages_K):
        path = store.folder / partition_path(int(domain))
        with pa.ipc.open_file(pa.memory_map(str(path))) as file:
            assert file.num_record_batches == 1
            assert file.schema == partition_schema(store.vocab_size)
            lists = file.get_batch(0).column("tokens")
        stream = store.volumes[0].tokens(int(domain))
        assert stream.dtype == np.uint16 and not stream.flags.owndata
        assert np.concatenate(lists.to_numpy(zero_copy_only=False)).tolist() == stream.tolist()
        assert len(stream) == store.tokens_K[domain]
    assert (store.windows_K(16) == np.maximum(store.tokens_K - 1, 0) // 16).all()


def test_tree_manifest_and_index_agree(store, prepared):
    tree, counts = store.tree, store.manifest.counts
    assert (tree.counts_K == store.passages_K).all()
    assert (
        counts["passages"]
        == tree.counts_K.sum()
        == len(pl.read_parquet(part_files(prepared / "passages", "train")))
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
        *(f"domain={domain:04d}" for domain in np.flatnonzero(store.passages_K)),
    }


def test_the_histogram_of_the_corpus_is_its_domain_sizes(store, prepared):
    vectors = np.concatenate(
        [read_embeddings(p)[1] for p in sorted((prepared / "embeddings").glob("*.arrow"))]
    )
    weights = assign_to_domains(vectors, store.tree, rule="tree").domain_weights
    assert (np.round(weights * len(vectors)) == store.passages_K).all()
    domain = int(np.argmax(store.passages_K))
    distances = rows_of(store, domain)["distance"].to_numpy()
    assert distances.mean() == pytest.approx(store.tree.mean_distance_K[domain], rel=1e-5)


def test_same_seed_gives_the_same_bytes_also_after_a_crash(store, prepared, tmp_path, monkeypatch):
    linked(prepared, tmp_path)

    def crash(*_):
        raise RuntimeError("killed")

    monkeypatch.setattr(Tree, "write", crash)
    with pytest.raises(RuntimeError, match="killed"):
        partition(tmp_path)
    monkeypatch.undo()
    work = tmp_path / "domains.partial"
    parts = len(part_files(prepared / "passages", "train"))
    assert len([*(work / SCRATCH).glob("*.arrow")]) == parts  # whatever the number of nodes
    written = {path: path.stat().st_mtime_ns for path in work.glob("domain=*/*")}
    assert written and not (tmp_path / "domains").exists()
    again = partition(tmp_path)
    assert [file.sha256 for file in again.files] == [file.sha256 for file in store.manifest.files]
    final = {
        work / p.relative_to(tmp_path / "domains"): p.stat().st_mtime_ns
        for p in (tmp_path / "domains").glob("domain=*/*")
    }
    assert final == written


def test_fewer_passages_than_domains(prepared, tmp_path):
    linked(prepared, tmp_path)
    with pytest.raises(
        ValueError, match=r"There are \d+ distinct .*fewer than the 4096 domains \(64 x 64\).*lower"
    ):
        partition(tmp_path, replace(TREE, coarse_clusters=64, leaf_clusters=64))


def test_fewer_distinct_embeddings_than_domains_and_empty_leaves(prepared, tmp_path):
    for name in ("passages", "tokenizer"):
        (tmp_path / name).symlink_to(prepared / name)
    (tmp_path / "embeddings").mkdir()
    distinct = np.eye(14, 64, dtype=np.float32)
    for source in sorted((prepared / "embeddings").glob("*.arrow")):
        ids, vectors = read_embeddings(source)
        write_embeddings(str(tmp_path / "embeddings" / source.name), ids, distinct[np.arange(len(ids)) % 14])
    with pytest.raises(ValueError, match="There are 14 distinct embeddings.*fewer than the 16 domains"):
        partition(tmp_path, replace(TREE, leaf_clusters=4))
    manifest = partition(tmp_path, replace(TREE, coarse_clusters=2, leaf_clusters=7, sample=100))
    opened = DomainStore(tmp_path)
    empty = opened.passages_K == 0
    assert manifest.counts["empty_domains"] == empty.sum()
    assert np.isnan(opened.tree.leaves_KD[empty]).all() and np.isfinite(opened.tree.leaves_KD[~empty]).all()
    assert not any((opened.folder / partition_path(int(domain))).exists() for domain in np.flatnonzero(empty))


def test_embeddings_of_other_passages_are_refused(prepared, tmp_path):
    for name in ("passages", "tokenizer"):
        (tmp_path / name).symlink_to(prepared / name)
    (tmp_path / "embeddings").mkdir()
    for source in sorted(Path(prepared / "embeddings").glob("*.arrow")):
        ids, vectors = read_embeddings(source)
        write_embeddings(str(tmp_path / "embeddings" / source.name), ids + 1, vectors)
    with pytest.raises(StoreError, match="of other passages"):
        partition(tmp_path)


def test_a_node_of_many_parts_has_one_mapped_at_a_time(tmp_path, monkeypatch):
    """A process may have 65,530 mappings; a corpus of 10^9 passages has more parts."""
    folders = Folders(passages="", embeddings="", tokenizer="", work=str(tmp_path))
    folders.scratch.mkdir()
    schema, rows_PC = scatter_schema(300, 8), np.array([[2, 0, 3], [0, 0, 0], *[[1, 4, 0]] * 60], np.int64)
    random, number = np.random.Generator(np.random.PCG64(0)), 0
    names = [f"part-{part:05d}" for part in range(len(rows_PC))]
    for name, rows_C in zip(names, rows_PC.tolist(), strict=True):
        ids = range(number, number := number + sum(rows_C))
        columns = [list(ids), ["d"] * len(ids), ["s"] * len(ids), random.normal(size=(len(ids), 8)).tolist()]
        batch = pa.record_batch(dict(zip(schema.names, [*columns, [[n % 300, 0] for n in ids]], strict=True)))
        write_batch(folders.scattered(name), batch.cast(schema), rows_C)
    mapped = []

    def look(real, *arguments, **options):
        mapped.append(sum(str(tmp_path) in line for line in Path("/proc/self/maps").open()))
        return real(*arguments, **options)

    for name in ("fit_node", "assign"):
        monkeypatch.setattr(leaves, name, partial(look, getattr(leaves, name)))
    settings = replace(TREE, coarse_clusters=3, leaf_clusters=2)
    found = [write_node(folders, node, (names, rows_PC), settings) for node in range(3)]
    assert len(mapped) > 100 and max(mapped) <= 2
    assert [int(node["counts_k"].sum()) for node in found] == rows_PC.sum(0).tolist()
    ids = [
        pa.ipc.open_file(str(path)).read_all()["passage_id"].to_pylist()
        for path in tmp_path.glob("domain=*/*")
    ]
    assert sorted(sum(ids, [])) == list(range(number))
    again = write_node(folders, 0, ([], np.zeros((0, 3))), settings)  # it is done
    assert again["counts_k"].tolist() == found[0]["counts_k"].tolist()


def test_the_root_reserves_the_cores_that_it_uses(prepared, tmp_path, monkeypatch):
    reserved = {}

    def here(function, arguments, *, num_cpus=1, **_):
        reserved[function.__name__] = num_cpus, arguments
        raise StopIteration

    monkeypatch.setattr(build, "run_tasks", here)
    monkeypatch.setattr(build, "free_cores", lambda: 3)
    with pytest.raises(StopIteration):
        partition(linked(prepared, tmp_path))
    [(cores, [(*_, threads)])] = reserved.values()
    assert [*reserved] == ["fit_root"] and cores == threads == 3


def test_no_part_lists_a_folder(prepared, tmp_path, monkeypatch):
    """As many parts as tasks: listings would grow with the square."""
    folder = linked(prepared, tmp_path)
    paths = {name: str(folder / name) for name in ("passages", "embeddings", "tokenizer")}
    folders = Folders(**paths, work=str(tmp_path))
    folders.scratch.mkdir()
    [part, *_] = part_files(folder / "passages", "train")
    coarse_CD = np.eye(LANGUAGES, 64, dtype=np.float32)
    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, lambda *_: pytest.fail("it lists a folder"))
    rows_C = scatter_part(folders, part, coarse_CD)["rows_C"]
    assert scatter_part(folders, part, coarse_CD)["rows_C"].tolist() == rows_C.tolist()  # it is done
    monkeypatch.undo()
    assert rows_C.sum() == len(pl.read_parquet(part))


def test_passages_that_are_lost_between_the_steps_are_an_error(prepared, tmp_path, monkeypatch):
    linked(prepared, tmp_path)

    def forgetful(folders, source, coarse_CD):
        found = scatter_part(folders, source, coarse_CD)
        return found | {"rows_C": found["rows_C"] * (np.arange(len(coarse_CD)) > 0)}

    monkeypatch.setattr("pipeline.domains.build.scatter_part", forgetful)
    with pytest.raises(StoreError, match=r"hold \d+ passages of \d+.*domains.partial.*Remove that folder"):
        partition(tmp_path)
