"""The build-domains job: corpus → passages → tokenizer → embeddings → tree and domains.

    python -m flows.jobs.build_domains --config '{"store": "mine", "corpus": "/data/texts"}'

Every stage that is finished with the same settings and inputs is skipped.
"""

from __future__ import annotations

import os

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import argparse
import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flows.jobs.progress import progress
from flows.settings import BuildDomains
from pipeline.clustering import check_gpu
from pipeline.corpora import ENVIRONMENT, Corpus, open_corpus
from pipeline.embedder import EmbedderWeights, find_embedder, load_embedder, weights_digest
from pipeline.embedding import build_embeddings
from pipeline.partitioning import Folders, TreeSettings, build_domains, check_enough_passages
from pipeline.passages import build_passages
from pipeline.selection import Selection
from pipeline.tasks import is_disk_full, ray_session
from pipeline.tokenizer import build_tokenizer, load_tokenizer
from storage_schema.layout import store_folder
from storage_schema.manifest import Manifest, Stage, StoreError, file_digest, open_stage


def run(settings: BuildDomains) -> dict[str, Any]:
    """Build the store, in this process's Ray session or a new one.

    Returns:
        ``store`` (its folder) and ``stages``: of each stage its ``digest``, ``counts``, ``seconds`` and whether
        it was ``skipped``.

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
        weights, model_digest = _check_embedder(settings)
        if settings.tokenizer is not None:
            load_tokenizer(settings.tokenizer)
        with ray_session():
            _check_cluster(settings)
            build = _Build(settings, folder)
            build.passages(corpus)
            build.tokenizer()
            build.embeddings(weights, model_digest)
            build.domains()
    return {"store": str(folder), "stages": build.summary}


class _Build:
    """The stages in order; each reads the manifests before it."""

    def __init__(self, settings: BuildDomains, folder: Path):
        self.settings, self.folder = settings, folder
        self.manifests: dict[str, Manifest] = {}
        self.summary: dict[str, dict] = {}

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

    def embeddings(self, weights: EmbedderWeights, model_digest: str) -> None:
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
                    max_seq_length=settings.max_seq_length,
                    use_gpu=settings.use_gpu,
                    report=report,
                )
        self._close("embeddings", stage)

    def domains(self) -> None:
        tree = self._tree_settings()
        vocab_size = self.manifests["tokenizer"].counts["vocab_size"]
        stage = self._open(
            "domains",
            {
                **{name: value for name, value in tree.__dict__.items() if name != "use_gpu"},
                "vocab_size": vocab_size,
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

    def _tree_settings(self) -> TreeSettings:
        return TreeSettings(
            coarse_clusters=self.settings.coarse_clusters,
            leaf_clusters=self.settings.leaf_clusters,
            iterations=self.settings.kmeans_iterations,
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


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code: 2 for an error the user can mend."""
    parser = argparse.ArgumentParser(prog="python -m flows.jobs.build_domains", description=run.__doc__)
    parser.add_argument("--config", default="{}", help="the parameters of BuildDomains, as JSON")
    options = parser.parse_args(arguments)
    try:
        summary = run(BuildDomains.model_validate_json(options.config))
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'config'}: {e['msg']}" for e in error.errors()
        )
        return _fail(f"bad parameters: {problems}")
    except ValueError as error:
        return _fail(str(error))
    print(json.dumps(summary), flush=True)
    return 0


def _fail(message: str) -> int:
    sys.stdout.flush()
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return 2


def _main_counts(manifest: Manifest) -> str:
    return ", ".join(
        f"{name} {value}" for name, value in manifest.counts.items() if isinstance(value, (int, float))
    )


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


def _check_embedder(settings: BuildDomains) -> tuple[EmbedderWeights, str]:
    weights = find_embedder(settings.embedder)
    model = load_embedder(weights, max_seq_length=settings.max_seq_length)
    return weights, weights_digest(model)


def _check_cluster(settings: BuildDomains) -> None:
    import ray

    if settings.use_gpu:
        if not ray.cluster_resources().get("GPU"):
            raise ValueError(
                "use_gpu is true, but the Ray cluster has no GPU. Start one on a machine with GPUs, "
                "check the driver (nvidia-smi), or set use_gpu=false."
            )
        check_gpu()


@contextmanager
def _full_disk_named(folder: Path):
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise StoreError(
            f"The disk of {folder} is full: {error}. Free some space and run again; finished stages and parts "
            "are kept."
        ) from error


if __name__ == "__main__":
    sys.exit(main())
