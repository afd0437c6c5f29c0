"""The stages of a store, each opened with its settings and inputs, and skipped if it is finished."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from flows.atlas_page import MOST_DOMAINS, write_atlas
from flows.jobs.progress import progress
from flows.settings import BuildDomains
from pipeline.corpora import ENVIRONMENT, Corpus
from pipeline.embedder import EmbedderWeights
from pipeline.embedding import build_embeddings
from pipeline.kmeans import KMeansSettings
from pipeline.leaves import TreeSettings
from pipeline.partitioning import build_domains, check_enough_passages
from pipeline.passages import build_passages
from pipeline.scatter import Folders
from pipeline.selection import Selection
from pipeline.tokenizer import build_tokenizer
from storage_schema.manifest import Manifest, Stage, file_digest, open_stage


class StoreBuilder:
    """The stages in order, in the running Ray session; each reads the manifests of those before it."""

    def __init__(self, settings: BuildDomains, folder: Path):
        self.settings, self.folder = settings, folder
        self.manifests: dict[str, Manifest] = {}
        self.summary: dict[str, dict] = {}
        """Of each stage: ``skipped``, ``digest``, ``counts``, ``seconds``."""

    def passages(self, corpus: Corpus) -> None:
        settings = self.settings
        selection = Selection(
            held_out_sources=tuple(sorted(set(settings.held_out_sources))),
            held_out_fraction=settings.held_out_fraction,
            max_documents_per_source=settings.max_documents_per_source,
            max_passages=settings.max_passages,
        )
        is_environment = corpus.uri == ENVIRONMENT
        stage = self._open(
            "passages",
            {
                **selection.__dict__,
                "corpus": ENVIRONMENT if is_environment else "files",
                "passage_characters": settings.passage_characters,
            },
            # The environment changes with every package installed, which must not spoil a finished store.
            {} if is_environment else {"corpus": corpus.digest},
        )
        if stage.finished is None:
            with progress("cut passages", "files") as report:
                build_passages(
                    stage,
                    corpus,
                    selection,
                    passage_characters=settings.passage_characters,
                    max_bad_documents=settings.max_bad_documents,
                    report=report,
                )
        self._close("passages", stage)
        check_enough_passages(stage.finished.counts["passages"], self._tree_settings())

    def tokenizer(self) -> None:
        settings = self.settings
        if settings.tokenizer is None:
            configuration: dict = {
                "vocab_size": settings.vocab_size,
                "sample_characters": settings.tokenizer_sample_characters,
            }
            inputs = {"passages": self.manifests["passages"].digest}
        else:
            configuration, inputs = {"trained": False}, {"tokenizer.json": file_digest(settings.tokenizer)}
        stage = self._open("tokenizer", configuration, inputs)
        if stage.finished is None:
            with progress("train tokenizer", "tokenizers") as report:
                report(0, 1)
                build_tokenizer(
                    stage,
                    self.folder / "passages",
                    vocab_size=settings.vocab_size,
                    sample_characters=settings.tokenizer_sample_characters,
                    given=settings.tokenizer,
                )
                report(1, 1)
        self._close("tokenizer", stage)

    def embeddings(self, weights: EmbedderWeights, model_digest: str, tokenizer_json: str | None) -> None:
        settings = self.settings
        stage = self._open(
            "embeddings",
            {"embedder": settings.embedder, "max_seq_length": settings.max_seq_length},
            {"passages": self.manifests["passages"].digest, "model": model_digest},
        )
        if stage.finished is None:
            with progress("embed passages", "passages") as report:
                build_embeddings(
                    stage,
                    self.folder / "passages",
                    weights,
                    tokenizer_json,
                    max_seq_length=settings.max_seq_length,
                    use_gpu=settings.use_gpu,
                    report=report,
                )
        self._close("embeddings", stage)

    def domains(self) -> None:
        tree = self._tree_settings()
        vocabulary = self.manifests["tokenizer"].counts
        stage = self._open(
            "domains",
            {
                **{name: value for name, value in asdict(tree).items() if name != "use_gpu"},
                "vocab_size": vocabulary["vocab_size"],
                "end_of_text": vocabulary["end_of_text"],
                "distance": "l2",
            },
            {name: self.manifests[name].digest for name in ("passages", "tokenizer", "embeddings")},
        )
        if stage.finished is None:
            folders = Folders(
                passages=str(self.folder / "passages"),
                embeddings=str(self.folder / "embeddings"),
                tokenizer=str(self.folder / "tokenizer"),
                work=str(stage.work),
            )
            with progress("cluster and write domains", "rows") as report:
                build_domains(stage, folders, tree, report=report)
        self._close("domains", stage)

    def atlas(self) -> Path | None:
        """Write the atlas page beside the stages; None if there are more domains than a page can show."""
        domains = self.manifests["domains"].counts["domains"]
        if domains > MOST_DOMAINS:
            print(
                f"atlas: left out, {domains} domains are more than a page can show ({MOST_DOMAINS})",
                flush=True,
            )
            return None
        with progress("draw the atlas", "domains") as report:
            path = write_atlas(self.folder, report=report)
        print(f"atlas: {path}", flush=True)
        return path

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
            use_gpu=self.settings.use_gpu,
        )

    def _open(self, kind: str, configuration: dict, inputs: dict[str, str]) -> Stage:
        stage = open_stage(
            self.folder / kind,
            kind=kind,
            configuration=configuration,
            inputs=inputs,
            rebuild=self.settings.rebuild,
        )
        self.summary[kind] = {"skipped": stage.finished is not None}
        return stage

    def _close(self, kind: str, stage: Stage) -> None:
        manifest = stage.finished
        assert manifest is not None
        skipped = self.summary[kind]["skipped"]
        state = "finished already, skipped" if skipped else f"finished in {manifest.seconds:.1f} s"
        print(f"{kind}: {state} ({_main_counts(manifest)})", flush=True)
        self.manifests[kind] = manifest
        self.summary[kind] |= {
            "digest": manifest.digest,
            "counts": manifest.counts,
            "seconds": manifest.seconds,
        }


def _main_counts(manifest: Manifest) -> str:
    return ", ".join(
        f"{name} {value}" for name, value in manifest.counts.items() if isinstance(value, (int, float))
    )
