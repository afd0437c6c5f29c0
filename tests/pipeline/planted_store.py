"""A store of a planted corpus: languages that its tree is to find."""

from __future__ import annotations

import zlib

import numpy as np
import polars as pl
import pytest

from pipeline.corpus.listing import open_corpus
from pipeline.domains.build import build_domains
from pipeline.domains.fitting import TreeSettings
from pipeline.domains.scatter import Folders
from pipeline.embeddings.build import write_embeddings
from pipeline.passages.build import build_passages
from pipeline.passages.selection import Selection
from pipeline.tasks import run_tasks
from pipeline.tokenizer import build_tokenizer
from pipeline.tree.kmeans import KMeansSettings
from storage_schema.corpus import part_files
from storage_schema.domains import DomainStore
from storage_schema.stage import open_stage
from tests.planted import planted_languages, write_planted_corpus

LANGUAGES = 4
TREE = TreeSettings(
    coarse_clusters=LANGUAGES,
    leaf_clusters=3,
    kmeans=KMeansSettings(iterations=10),
    sample=10_000,
    seed=1,
    searched_nodes=2,
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


def partition(folder, settings=TREE, **options):
    stage = stage_of(folder, "domains")
    names = ("passages", "embeddings", "tokenizer")
    folders = Folders(**{name: str(folder / name) for name in names}, work=str(stage.work))
    return build_domains(stage, folders, settings, **options)


@pytest.fixture(scope="session")
def planted(ray_cluster, tmp_path_factory):
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


@pytest.fixture(scope="session")
def planted_store(planted):
    """Its domains; not to be changed."""
    partition(planted)
    return DomainStore(planted)


def linked(planted, folder):
    """A store folder that shares the finished stages of `planted`."""
    for name in ("passages", "tokenizer", "embeddings"):
        (folder / name).symlink_to(planted / name)
    return folder
