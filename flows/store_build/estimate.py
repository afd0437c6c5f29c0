"""How long a build or an addition takes: said at its start, when passages are counted, and as each stage goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows.reporting.job_output import write_card
from flows.reporting.progress import Report, progress
from flows.settings import BuildDomains
from pipeline.corpus.documents import Corpus
from pipeline.planning.estimate import CLUSTER, CUT, EMBED, TRAIN, BuildEstimate, estimate_build, in_words
from pipeline.planning.trial import encoder_rate, sample_corpus
from storage_schema.manifest import Manifest

_STAGES = {"passages": CUT, "tokenizer": TRAIN, "embeddings": EMBED, "domains": CLUSTER}

LESS = "Fewer passages (`max_passages`) or reading less of each (`max_seq_length`) take less."


class Ahead:
    """The estimate of one build, and how much of it is left.

    Args:
        estimate: None: say nothing.
        advice: what takes less time, for the run's page.
    """

    def __init__(self, estimate: BuildEstimate | None = None, *, advice: str = ""):
        self.estimate, self.advice = estimate, advice

    def say(self) -> None:
        """Print the estimate, and show it on the run's page."""
        if self.estimate:
            for line in self.estimate.lines():
                print(f"estimate: {line}", flush=True)
            write_card("estimate", f"{self.estimate.markdown()} {self.advice}".strip())

    def know_passages(self, passages: int) -> None:
        """Once the passages are counted, say what is left."""
        if self.estimate and passages != self.estimate.passages:
            self.estimate = self.estimate.with_passages(passages)
            self.say()

    @contextmanager
    def progress(self, stage: str, unit: str) -> Iterator[Report]:
        """As :func:`flows.reporting.progress.progress`, with the time left for the whole build as the note."""
        with progress(stage, unit) as report:
            first: list[Any] = []  # the moment, and what had been done before

            def noted(done: int, total: int, note: str = "") -> None:
                first[:] = first or [time.monotonic(), done]
                elapsed = time.monotonic() - first[0]
                left = self.estimate and self.estimate.left(
                    stage, first=first[1], done=done, of=total, elapsed=elapsed
                )
                ahead = f"about {in_words(left)} left in all" if left and done < total else ""
                report(done, total, note or ahead)

            yield noted


def look_ahead(settings: BuildDomains, folder: Path, corpus: Corpus, model: Any) -> Ahead:
    """Estimate the build, in the Ray session. Takes two seconds, or none where nothing long is left."""
    estimate = _estimate(
        corpus,
        model,
        finished=() if settings.rebuild else _finished(folder),
        passage_characters=settings.passage_characters,
        held_out_fraction=settings.held_out_fraction,
        max_passages=settings.max_passages,
        sampled_passages=settings.coarse_clusters * settings.kmeans_sample,
        tokenizer_sample=0 if settings.tokenizer else settings.tokenizer_sample_characters,
        runtime=settings.embedder_runtime,
        max_seq_length=settings.max_seq_length,
        use_gpu=settings.use_gpu,
    )
    return Ahead(estimate, advice=LESS)


def look_ahead_of_addition(
    base: Mapping[str, Manifest], folder: Path, corpus: Corpus, model: Any, *, use_gpu: bool
) -> Ahead:
    """As :func:`look_ahead`, for an addition in `folder` to the store whose stages have the manifests `base`."""
    passages, embeddings = base["passages"].configuration, base["embeddings"]
    estimate = _estimate(
        corpus,
        model,
        finished=("tokenizer", *_finished(folder)),
        passage_characters=passages["passage_characters"],
        held_out_fraction=passages["held_out_fraction"],
        max_passages=None,
        sampled_passages=0,
        tokenizer_sample=0,
        runtime=embeddings.counts["runtime"],
        max_seq_length=embeddings.configuration["max_seq_length"],
        use_gpu=use_gpu,
    )
    return Ahead(estimate)


def _finished(folder: Path) -> tuple[str, ...]:
    return tuple(kind for kind in _STAGES if (folder / kind).exists())


def _estimate(
    corpus: Corpus,
    model: Any,
    *,
    finished: Sequence[str],
    passage_characters: int,
    held_out_fraction: float,
    max_passages: int | None,
    sampled_passages: int,
    tokenizer_sample: int,
    runtime: str,
    max_seq_length: int,
    use_gpu: bool,
) -> BuildEstimate | None:
    import ray

    if "domains" in finished or "embeddings" in finished:
        return None
    sample = sample_corpus(corpus, passage_characters)
    rate = None
    if not use_gpu:
        rate = encoder_rate(
            model, sample, runtime=runtime, max_seq_length=max_seq_length, max_passages=max_passages
        )
    nodes = sum(1 for node in ray.nodes() if node["Alive"])
    return estimate_build(
        sample,
        disk_bytes=corpus.store_bytes(
            passage_characters=passage_characters,
            max_passages=max_passages,
            embedding_size=model.get_embedding_dimension() or 0,
            sampled_passages=sampled_passages,
        ),
        cores=max(1, int(ray.cluster_resources().get("CPU", 1))),
        encoder_rate=rate and rate * nodes,
        held_out_fraction=held_out_fraction,
        max_passages=max_passages,
        tokenizer_sample=tokenizer_sample,
        finished=[_STAGES[kind] for kind in finished],
    )
