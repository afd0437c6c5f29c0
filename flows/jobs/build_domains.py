"""The build-domains job: corpus → passages → tokenizer → embeddings → tree and domains → atlas.

    python -m flows.jobs.build_domains --config '{"store": "mine", "corpus": "/data/texts"}'

Every stage that is finished with the same settings and inputs is skipped.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from flows.cluster import session
from flows.jobs import runner
from flows.settings import BuildDomains
from flows.store_build.elsewhere import written_store
from flows.store_build.estimate import look_ahead
from flows.store_build.stage_runner import full_disk_named
from flows.store_build.store_builder import StoreBuilder, draw_atlas
from pipeline.corpus.documents import Corpus
from pipeline.corpus.listing import open_corpus
from pipeline.embeddings.embedder import find_embedder, load_embedder
from pipeline.tasks import is_disk_full
from pipeline.tokenizer import check_lossless, load_tokenizer
from storage_schema.errors import UserError
from storage_schema.layout import store_to_write
from storage_schema.lock import only_writer
from storage_schema.room import bytes_below, require_room


def run(settings: BuildDomains) -> dict[str, Any]:
    """Build the store, on the Ray cluster this process has joined, or a local one.

    Returns:
        ``store`` (its folder or URI), ``atlas`` (the page's path, None if there are too many domains for one) and
        ``stages``: of each stage its ``digest``, ``counts``, ``seconds`` and whether it was ``skipped``.

    Raises:
        ValueError: bad settings, corpus or embedder (checked first), or a store built with other settings.
        StoreError: the disk is full, or the store's place elsewhere cannot be written; finished stages stay valid.
    """
    folder = store_to_write(settings.store)
    with full_disk_named(folder):
        _check_writable(folder)
        corpus = open_corpus(
            settings.corpus, text_field=settings.text_field, source_field=settings.source_field
        )
        # First, so that an embedder that cannot be loaded is reported at once.
        weights = find_embedder(settings.embedder, settings.embedder_revision)
        model = load_embedder(weights, max_seq_length=settings.max_seq_length)
        if settings.tokenizer is not None:
            check_lossless(load_tokenizer(settings.tokenizer), settings.tokenizer)
        _check_room(settings, folder, corpus, model)
        session.connect()
        session.require_gpus(settings.use_gpu)
        with written_store(settings.store) as store, only_writer(folder):
            ahead = look_ahead(settings, folder, corpus, model)
            ahead.say()
            build = StoreBuilder(settings, store, ahead)
            build.passages(corpus)
            build.tokenizer()
            build.embeddings(weights, model)
            build.domains()
            atlas = draw_atlas(folder)
    return {"store": store.place, "atlas": atlas and str(atlas), "stages": build.stages.summary}


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:  # under a name that no other build uses
            probe.write(b"x")
    except OSError as error:
        if is_disk_full(error):
            raise
        raise UserError(
            f"The store {folder} cannot be written: {error}. Choose another store or SOE_HOME."
        ) from error


def _check_room(settings: BuildDomains, folder: Path, corpus: Corpus, model: Any) -> None:
    if (folder / "domains").exists() or settings.max_documents_per_source is not None:
        return  # nothing large is left to write, or nobody knows how much
    expected = corpus.store_bytes(
        passage_characters=settings.passage_characters,
        max_passages=settings.max_passages,
        embedding_size=model.get_embedding_dimension() or 0,
        sampled_passages=settings.coarse_clusters * settings.kmeans_sample,
    )
    require_room(
        folder,
        expected - bytes_below(folder),
        what=f"a store of the corpus {corpus.uri}",
        way_out="set max_passages, or SOE_HOME to a folder on a larger disk",
    )


if __name__ == "__main__":
    runner.main(BuildDomains, run)
