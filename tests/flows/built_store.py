"""A store built once for all tests, by the real job with the real embedder, of three easy topics."""

from __future__ import annotations

import json
import random
from contextlib import nullcontext
from pathlib import Path

import pytest

from flows.jobs import build_domains as job
from flows.settings import BuildDomains
from pipeline.domains import fitting as partitioning
from pipeline.domains import scatter
from pipeline.embeddings import build as embedding
from storage_schema.manifest import StoreError

TOPICS = {
    "pets": "cat dog kitten puppy fur paw tail bark purr leash",
    "money": "stock bond yield market price trade bank loan share fund",
    "space": "planet star orbit moon comet rocket galaxy probe crater lander",
}


def write_corpus(path: Path, documents: int, *, seed: int) -> Path:
    """JSON lines, the topics in turn."""
    generator = random.Random(seed)
    with open(path, "w") as file:
        for number in range(documents):
            source = list(TOPICS)[number % 3]
            text = " ".join(generator.choices(TOPICS[source].split(), k=40))
            file.write(json.dumps({"text": f"{text} {number}", "source": source}) + "\n")
    return path


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", 150, seed=0)


@pytest.fixture(scope="session")
def settings(corpus, tmp_path_factory):
    return BuildDomains(
        store=str(tmp_path_factory.mktemp("stores") / "store"),
        corpus=str(corpus),
        held_out_fraction=0.1,
        vocab_size=400,
        max_seq_length=16,
        coarse_clusters=3,
        leaf_clusters=2,
    )


@pytest.fixture(scope="session")
def interrupted(ray_cluster, settings):
    """The error of a first run whose disk fills up while it fits the tree."""

    def on_a_full_disk(*arguments):
        # In the task, another process: /dev/full takes not one byte.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scatter, "written_aside", lambda path: nullcontext("/dev/full"))
            return partitioning.fit_root(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partitioning, "fit_root", on_a_full_disk)
        patch.setattr(embedding, "FEW", 0)  # through actors, as a large corpus
        with pytest.raises(StoreError) as raised:
            job.run(settings)
    folder = Path(settings.store)
    left = sorted(path.name for path in folder.iterdir())
    return str(raised.value), left


@pytest.fixture(scope="session")
def built(interrupted, settings):
    """The summary of the run after it."""
    return job.run(settings)
