"""The add-documents job: more documents join a store, as its tokenizer, embedder and tree have them.

    python -m flows.jobs.add_documents --config '{"store": "mine", "corpus": "/data/november.jsonl"}'

What is added lies in ``<store>/additions/0001`` and so on, stage by stage as in the store itself. Nothing
written earlier changes, and a pretraining run that was begun goes on with what the store held then.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from flows.cluster import session
from flows.jobs import runner
from flows.reporting.progress import progress
from flows.settings import AddDocuments
from flows.store_build.elsewhere import WrittenStore, written_store
from flows.store_build.estimate import Ahead, look_ahead_of_addition
from flows.store_build.stage_runner import Stages, full_disk_named
from flows.store_build.store_builder import draw_atlas, embeddings_stage
from pipeline.corpus.documents import Corpus
from pipeline.corpus.listing import open_corpus
from pipeline.domains.build import build_domains
from pipeline.domains.fitting import TreeSettings
from pipeline.domains.scatter import Folders
from pipeline.embeddings.embedder import EmbedderWeights, reload_embedder
from pipeline.passages.build import build_passages
from pipeline.passages.selection import Selection
from pipeline.planning.estimate import CUT
from pipeline.reports.audit import STAGES
from pipeline.tree.kmeans import KMeansSettings
from storage_schema.corpus import SPLITS, part_files
from storage_schema.domains import DomainStore
from storage_schema.layout import additions_folder, store_and_additions
from storage_schema.lock import only_writer
from storage_schema.manifest import Manifest, StoreError, read_manifest


def run(settings: AddDocuments) -> dict[str, Any]:
    """Add a corpus to a finished store.

    Returns:
        ``store``, ``addition`` (its folder or URI), ``atlas`` and ``stages``, as build-domains has them.

    Raises:
        ValueError: no such store or corpus, another embedder than the store's, nothing in the corpus that
            the store has not already, or an earlier addition that was not finished.
    """
    with written_store(settings.store) as store:
        if "://" in store.place and not store.published:
            raise StoreError(
                f"there is no finished store at {store.place}. Build it first, or check the name."
            )
        return _add(settings, store)


def _add(settings: AddDocuments, store: WrittenStore) -> dict[str, Any]:
    folder = store.folder
    base = {kind: read_manifest(folder / kind, kind) for kind in STAGES}
    with full_disk_named(folder):
        corpus = open_corpus(
            settings.corpus, text_field=settings.text_field, source_field=settings.source_field
        )
        embeddings = base["embeddings"]
        encoder = reload_embedder(embeddings.configuration, embeddings.inputs["model"])
        session.connect()
        session.require_gpus(settings.use_gpu)
        with only_writer(folder):
            place = _addition_folder(corpus, folder)
            ahead = look_ahead_of_addition(base, place, corpus, encoder[1], use_gpu=settings.use_gpu)
            ahead.say()
            addition = Addition(settings, folder, base, place, ahead)
            addition.passages(corpus)
            addition.embeddings(*encoder)
            addition.domains()
            atlas = draw_atlas(folder)
    return {
        "store": store.place,
        "addition": f"{store.place}/additions/{addition.folder.name}",
        "atlas": atlas and str(atlas),
        "stages": addition.stages.summary,
    }


class Addition:
    """The stages of one addition, made as the store's own were."""

    def __init__(
        self, settings: AddDocuments, store: Path, base: dict[str, Manifest], folder: Path, ahead: Ahead
    ):
        self.settings, self.store, self.base, self.folder, self.ahead = settings, store, base, folder, ahead
        self.stages = Stages(folder, rebuild=None)

    def passages(self, corpus: Corpus) -> None:
        made = self.base["passages"].configuration
        # The limits of the store's own corpus are not those of what is added.
        selection = Selection(
            held_out_sources=tuple(made["held_out_sources"]),
            held_out_fraction=made["held_out_fraction"],
            drop_duplicates=made["drop_duplicates"],
        )
        before = [part for part in store_and_additions(self.store) if part < self.folder]
        stage = self.stages.open(
            "passages",
            {**selection.__dict__, "passage_characters": made["passage_characters"]},
            {"corpus": corpus.digest, "store": DomainStore(self.store, num_volumes=len(before)).digest},
        )
        if stage.finished is None:
            with self.ahead.progress(CUT, "files") as report:
                build_passages(
                    stage,
                    corpus,
                    selection,
                    passage_characters=made["passage_characters"],
                    max_bad_documents=self.settings.max_bad_documents,
                    max_damaged_files=self.settings.max_damaged_files,
                    present=[
                        part
                        for folder in before
                        for split in SPLITS
                        for part in part_files(folder / "passages", split)
                    ],
                    report=report,
                )
        self.stages.close("passages", stage)
        self.ahead.know_passages(self.stages.manifests["passages"].counts["passages"])

    def embeddings(self, weights: EmbedderWeights, model: Any) -> None:
        base, use_gpu = self.base["embeddings"], self.settings.use_gpu
        made = base.configuration | {"runtime": base.counts["runtime"]}
        embeddings_stage(
            self.stages, made, base.inputs["model"], weights, model, use_gpu=use_gpu, ahead=self.ahead
        )

    def domains(self) -> None:
        made = self.base["domains"].configuration
        stage = self.stages.open(
            "domains",
            made,
            self.stages.digests("passages", "embeddings")
            | {"tokenizer": self.base["tokenizer"].digest, "tree": self.base["domains"].digest},
        )
        if stage.finished is None:
            folders = Folders(
                passages=str(self.folder / "passages"),
                embeddings=str(self.folder / "embeddings"),
                tokenizer=str(self.store / "tokenizer"),
                work=str(stage.work),
            )
            tree = DomainStore(self.store, num_volumes=1).tree
            with progress("assign to domains", "passages") as report:
                build_domains(stage, folders, _settings_of(made), tree=tree, report=report)
        self.stages.close("domains", stage)


def _addition_folder(corpus: Corpus, store: Path) -> Path:
    """The folder of the addition of this corpus: the one it has, or the next.

    Raises :class:`StoreError` if the addition before it was not finished.
    """
    additions = additions_folder(store)
    there = sorted(path for path in additions.glob("[0-9]*") if path.is_dir())
    digest = corpus.digest  # of all its files' names
    for folder in there:
        passages = folder / "passages"
        if passages.exists() and read_manifest(passages, "passages").inputs["corpus"] == digest:
            return folder
    if there and not (there[-1] / "domains").exists():
        if (there[-1] / "passages").exists():
            raise StoreError(
                f"{there[-1]} was not finished: give the same corpus again to go on with it, or remove that folder."
            )
        return there[-1]
    return additions / f"{len(there) + 1:04d}"


def _settings_of(made: dict[str, Any]) -> TreeSettings:
    """The settings of a tree from its manifest."""
    names = {field.name for field in fields(TreeSettings)}
    chosen = {name: value for name, value in made.items() if name in names}
    return TreeSettings(**{**chosen, "kmeans": KMeansSettings(**made["kmeans"])})


if __name__ == "__main__":
    runner.main(AddDocuments, run)
