"""The stages of a store, each opened with its settings and inputs, and skipped if it is finished."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from flows.atlas.page import FILE_NAME, MOST_DOMAINS, write_atlas
from flows.reporting.progress import progress
from flows.settings import BuildDomains
from flows.store_build.elsewhere import WrittenStore
from flows.store_build.estimate import Ahead
from flows.store_build.stage_runner import Stages
from pipeline.corpus.decoding import source_name
from pipeline.corpus.documents import ENVIRONMENT, Corpus
from pipeline.domains.build import build_domains
from pipeline.domains.fitting import TreeSettings, check_enough_passages
from pipeline.domains.scatter import Folders
from pipeline.embeddings.build import build_embeddings
from pipeline.embeddings.embedder import EmbedderWeights, weights_digest
from pipeline.passages.build import build_passages
from pipeline.passages.selection import Selection
from pipeline.planning.estimate import CLUSTER, CUT, EMBED, TRAIN
from pipeline.tasks import run_tasks
from pipeline.tokenizer import build_tokenizer, tokenizer_file
from pipeline.tree.kmeans import KMeansSettings
from storage_schema.domains import DomainStore
from storage_schema.layout import DOMAIN_WORDS
from storage_schema.manifest import file_digest


class StoreBuilder:
    """The stages in order, in the running Ray session; each reads the manifests of those before it."""

    def __init__(self, settings: BuildDomains, store: WrittenStore, ahead: Ahead):
        self.settings, self.folder, self.ahead = settings, store.folder, ahead
        published = store.place if store.published else None
        self.stages = Stages(store.folder, rebuild=settings.rebuild, published=published)

    def passages(self, corpus: Corpus) -> None:
        settings, tree = self.settings, self._tree_settings()  # which refuses too many domains
        selection = Selection(
            held_out_sources=tuple(sorted({source_name(name, name) for name in settings.held_out_sources})),
            held_out_fraction=settings.held_out_fraction,
            max_documents_per_source=settings.max_documents_per_source,
            max_passages=settings.max_passages,
            drop_duplicates=settings.drop_duplicates,
        )
        is_environment = corpus.uri == ENVIRONMENT
        stage = self.stages.open(
            "passages",
            {
                **selection.__dict__,
                "corpus": ENVIRONMENT if is_environment else "files",
                "passage_characters": settings.passage_characters,
            },
            # The environment changes with every installed package. That must not invalidate a finished store.
            {} if is_environment else {"corpus": corpus.digest},
        )
        if stage.finished is None:
            with self.ahead.progress(CUT, "files") as report:
                build_passages(
                    stage,
                    corpus,
                    selection,
                    passage_characters=settings.passage_characters,
                    max_bad_documents=settings.max_bad_documents,
                    max_damaged_files=settings.max_damaged_files,
                    report=report,
                )
        self.stages.close("passages", stage)
        passages = self.stages.manifests["passages"].counts["passages"]
        check_enough_passages(passages, tree)
        self.ahead.know_passages(passages)

    def tokenizer(self) -> None:
        settings = self.settings
        if settings.tokenizer is None:
            configuration: dict = {
                "vocab_size": settings.vocab_size,
                "sample_characters": settings.tokenizer_sample_characters,
            }
            inputs = self.stages.digests("passages")
        else:
            configuration, inputs = (
                {"trained": False},
                {"tokenizer.json": file_digest(tokenizer_file(settings.tokenizer))},
            )
        stage = self.stages.open("tokenizer", configuration, inputs)
        if stage.finished is None:
            with self.ahead.progress(TRAIN, "tokenizers") as report:
                report(0, 1)
                build_tokenizer(
                    stage,
                    self.folder / "passages",
                    vocab_size=settings.vocab_size,
                    sample_characters=settings.tokenizer_sample_characters,
                    given=settings.tokenizer,
                    run=run_tasks,
                )
                report(1, 1)
        self.stages.close("tokenizer", stage)

    def embeddings(self, weights: EmbedderWeights, model: Any) -> None:
        settings = self.settings
        configuration = {
            "embedder": settings.embedder,
            "revision": settings.embedder_revision,
            "max_seq_length": settings.max_seq_length,
            "runtime": settings.embedder_runtime,
        }
        digest = weights_digest(model)
        embeddings_stage(
            self.stages, configuration, digest, weights, model, use_gpu=settings.use_gpu, ahead=self.ahead
        )

    def domains(self) -> None:
        tree = self._tree_settings()
        vocabulary = self.stages.manifests["tokenizer"].counts
        stage = self.stages.open(
            "domains",
            {
                **{name: value for name, value in asdict(tree).items() if name != "use_gpu"},
                "vocab_size": vocabulary["vocab_size"],
                "end_of_text": vocabulary["end_of_text"],
                "distance": "l2",
            },
            self.stages.digests("passages", "tokenizer", "embeddings"),
        )
        if stage.finished is None:
            folders = Folders(
                passages=str(self.folder / "passages"),
                embeddings=str(self.folder / "embeddings"),
                tokenizer=str(self.folder / "tokenizer"),
                work=str(stage.work),
            )
            with self.ahead.progress(CLUSTER, "passages") as report:
                build_domains(stage, folders, tree, report=report)
        self.stages.close("domains", stage)

    def _tree_settings(self) -> TreeSettings:
        return TreeSettings(
            coarse_clusters=self.settings.coarse_clusters,
            leaf_clusters=self.settings.leaf_clusters,
            kmeans=KMeansSettings(
                iterations=self.settings.kmeans_iterations,
                starts=self.settings.kmeans_starts,
                init=self.settings.kmeans_init,
                size_limit=self.settings.kmeans_size_limit,
            ),
            sample=self.settings.kmeans_sample,
            seed=self.settings.seed,
            searched_nodes=self.settings.searched_nodes,
            use_gpu=self.settings.use_gpu,
        )


def embeddings_stage(
    stages: Stages,
    configuration: dict,
    digest: str,
    weights: EmbedderWeights,
    model: Any,
    *,
    use_gpu: bool,
    ahead: Ahead,
) -> None:
    """The embeddings of the passages stage closed before; `digest` is that of the model's weights."""
    stage = stages.open("embeddings", configuration, stages.digests("passages") | {"model": digest})
    if stage.finished is None:
        with ahead.progress(EMBED, "passages") as report:
            build_embeddings(
                stage,
                stages.folder / "passages",
                weights,
                model,
                max_seq_length=configuration["max_seq_length"],
                runtime=configuration["runtime"],
                use_gpu=use_gpu,
                report=report,
            )
    stages.close("embeddings", stage)


def draw_atlas(folder: Path) -> Path | None:
    """Write the atlas page beside the stages; None if there are more domains than a page can show."""
    domains = DomainStore(folder).num_domains
    if domains > MOST_DOMAINS:
        for stale in (FILE_NAME, DOMAIN_WORDS):  # of earlier domains
            (folder / stale).unlink(missing_ok=True)
        print(
            f"atlas: left out, {domains} domains are more than a page can show ({MOST_DOMAINS})", flush=True
        )
        return None
    with progress("draw the atlas", "domains") as report:
        path = write_atlas(folder, report=report)
    print(f"atlas: {path}", flush=True)
    return path
