"""How long a build will take: said at its start, when its passages are counted, and beside each stage's progress."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows.reporting.job_output import write_card
from flows.reporting.progress import Report, progress
from flows.settings import BuildDomains
from pipeline.corpus.documents import Corpus
from pipeline.planning.estimate import CLUSTER, CUT, EMBED, TRAIN, BuildEstimate, estimate_build, in_words
from pipeline.planning.trial import encoder_rate, sample_corpus

_STAGES = {"passages": CUT, "tokenizer": TRAIN, "embeddings": EMBED, "domains": CLUSTER}


class Ahead:
    """The estimate of one build, and how much of it is left.

    Args:
        estimate: None: say nothing.
    """

    def __init__(self, estimate: BuildEstimate | None = None):
        self.estimate = estimate

    def say(self) -> None:
        """Print the estimate, and show it on the run's page."""
        if self.estimate:
            for line in self.estimate.lines():
                print(f"estimate: {line}", flush=True)
            write_card("estimate", self.estimate.markdown())

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
                report(done, total, note or (f"about {in_words(left)} left in all" if left else ""))

            yield noted


def look_ahead(settings: BuildDomains, folder: Path, corpus: Corpus, model: Any) -> Ahead:
    """Estimate the build, in the Ray session. Takes two seconds, or none where nothing long is left."""
    import ray

    done = () if settings.rebuild else tuple(kind for kind in _STAGES if (folder / kind).exists())
    if "domains" in done or "embeddings" in done:
        return Ahead()
    sample = sample_corpus(corpus, settings.passage_characters)
    rate = None
    if not settings.use_gpu:
        rate = encoder_rate(
            model,
            sample,
            runtime=settings.embedder_runtime,
            max_seq_length=settings.max_seq_length,
            max_passages=settings.max_passages,
        )
    nodes = sum(1 for node in ray.nodes() if node["Alive"])
    size = model.get_embedding_dimension() or 0
    return Ahead(
        estimate_build(
            sample,
            disk_bytes=corpus.store_bytes(
                passage_characters=settings.passage_characters,
                max_passages=settings.max_passages,
                embedding_size=size,
            ),
            cores=max(1, int(ray.cluster_resources().get("CPU", 1))),
            encoder_rate=rate and rate * nodes,
            held_out_fraction=settings.held_out_fraction,
            max_passages=settings.max_passages,
            tokenizer_sample=0 if settings.tokenizer else settings.tokenizer_sample_characters,
            finished=[_STAGES[kind] for kind in done],
        )
    )
