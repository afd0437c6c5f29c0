"""The build-domains job: corpus → passages → tokenizer → embeddings → tree and domains → atlas.

    python -m flows.jobs.build_domains --config '{"store": "mine", "corpus": "/data/texts"}'

Every stage that is finished with the same settings and inputs is skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows.jobs import runner
from flows.jobs.domain_stages import StoreBuilder
from flows.settings import BuildDomains
from pipeline.clustering import check_gpu
from pipeline.corpora import open_corpus
from pipeline.embedder import EmbedderWeights, find_embedder, load_embedder, weights_digest
from pipeline.tasks import is_disk_full, run_tasks
from pipeline.tokenizer import load_tokenizer
from pipeline.word_pieces import tokenizer_of
from storage_schema.layout import store_folder
from storage_schema.lock import only_writer
from storage_schema.manifest import StoreError


def run(settings: BuildDomains) -> dict[str, Any]:
    """Build the store, on the Ray cluster this process has joined, or a local one.

    Returns:
        ``store`` (its folder), ``atlas`` (the page's path, None if there are too many domains for one) and
        ``stages``: of each stage its ``digest``, ``counts``, ``seconds`` and whether it was ``skipped``.

    Raises:
        ValueError: bad settings, corpus or embedder (checked first), or a store built with other settings.
        StoreError: the disk is full; finished stages stay valid.
    """
    folder = store_folder(settings.store)
    with _full_disk_named(folder):
        _check_writable(folder)
        corpus = open_corpus(
            settings.corpus, text_field=settings.text_field, source_field=settings.source_field
        )
        encoder = _check_embedder(settings)
        if settings.tokenizer is not None:
            load_tokenizer(settings.tokenizer)
        runner.connect()
        _check_gpus(settings)
        with only_writer(folder):
            build = StoreBuilder(settings, folder)
            build.passages(corpus)
            build.tokenizer()
            build.embeddings(*encoder)
            build.domains()
            atlas = build.atlas()
    return {"store": str(folder), "atlas": atlas and str(atlas), "stages": build.summary}


def _check_writable(folder: Path) -> None:
    probe = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        if is_disk_full(error):
            raise
        raise ValueError(
            f"The store {folder} cannot be written: {error}. Choose another store or SOE_HOME."
        ) from error


def _check_embedder(settings: BuildDomains) -> tuple[EmbedderWeights, str, str | None]:
    """Where the model is, the digest of its weights, and its tokenizer where that can be used apart."""
    weights = find_embedder(settings.embedder)
    model = load_embedder(weights, max_seq_length=settings.max_seq_length)
    return weights, weights_digest(model), tokenizer_of(model)


def _check_gpus(settings: BuildDomains) -> None:
    import ray

    if settings.use_gpu:
        if not ray.cluster_resources().get("GPU"):
            raise ValueError(
                "use_gpu is true, but the Ray cluster has no GPU. Start one on a machine with GPUs, "
                "check the driver (nvidia-smi), or set use_gpu=false."
            )
        run_tasks(check_gpu, [()], num_gpus=1)


@contextmanager
def _full_disk_named(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise StoreError(
            f"The disk of {folder} is full: {error}. Free some space and run again; finished stages and "
            "parts are kept."
        ) from error


if __name__ == "__main__":
    runner.main(BuildDomains, run)
