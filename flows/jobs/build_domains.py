"""The build-domains job: corpus → passages → tokenizer → embeddings → tree and domains → atlas.

    python -m flows.jobs.build_domains --config '{"store": "mine", "corpus": "/data/texts"}'

Every stage that is finished with the same settings and inputs is skipped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flows.jobs import runner
from flows.jobs.domain_stages import StoreBuilder, draw_atlas
from flows.jobs.stages import full_disk_named
from flows.settings import BuildDomains
from pipeline.corpora import open_corpus
from pipeline.embedder import find_embedder, load_embedder
from pipeline.tasks import is_disk_full
from pipeline.tokenizer import load_tokenizer
from storage_schema.layout import store_folder
from storage_schema.lock import only_writer


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
    with full_disk_named(folder):
        _check_writable(folder)
        corpus = open_corpus(
            settings.corpus, text_field=settings.text_field, source_field=settings.source_field
        )
        # Before anything long, so that an embedder that cannot be loaded is said at once.
        weights = find_embedder(settings.embedder, settings.embedder_revision)
        model = load_embedder(weights, max_seq_length=settings.max_seq_length)
        if settings.tokenizer is not None:
            load_tokenizer(settings.tokenizer)
        runner.connect()
        runner.require_gpus(settings.use_gpu)
        with only_writer(folder):
            build = StoreBuilder(settings, folder)
            build.passages(corpus)
            build.tokenizer()
            build.embeddings(weights, model)
            build.domains()
            atlas = draw_atlas(folder)
    return {"store": str(folder), "atlas": atlas and str(atlas), "stages": build.stages.summary}


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


if __name__ == "__main__":
    runner.main(BuildDomains, run)
