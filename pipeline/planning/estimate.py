"""How long building a store will take and what it needs, said before it starts and again as it goes.

The encoder takes nine tenths of it or more: its rate is measured where the job runs (``trial.py``). The others'
rates are those of a real run (tests/benchmarks/records/2026-11-24-domains.md: 319 million characters read, 21.3 million
kept in passages of 213, on 2 cores), divided by the cores there are. So this is right to a factor of two or so, and as
soon as a stage is under way its own rate counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

CUT, TRAIN, EMBED, CLUSTER = "cut passages", "train tokenizer", "embed passages", "cluster and write domains"
"""The stages, as the job names them."""
CUT_SECONDS = 0.33
"""Of a core, for a million characters of documents: read, cut, compared and written."""
TRAIN_SECONDS = 0.37
"""For a million characters of the tokenizer's sample, on any number of cores."""
CLUSTER_SECONDS = 3.5
"""Of a core, for a million characters of passages: tokenized, clustered and written; longer passages take less."""


@dataclass(frozen=True, kw_only=True)
class CorpusSample:
    """What some documents of a corpus say of all."""

    files: int
    bytes: int
    """Of all the corpus."""
    characters_per_byte: float
    """Of documents that are read, for a byte of the files."""
    passages_per_byte: float
    texts: tuple[str, ...] = ()
    """Some passages."""

    @property
    def passages(self) -> int:
        """About how many the whole corpus has."""
        return int(self.bytes * self.passages_per_byte)


@dataclass(frozen=True, kw_only=True)
class BuildEstimate:
    """What is ahead of a build."""

    files: int
    bytes: int
    passages: int
    """To train on; at most, since what is a duplicate shows only when all are cut."""
    disk_bytes: float
    encoder_rate: float | None
    """Passages a second; None: not measured, as of GPUs."""
    seconds: dict[str, float | None]
    """Of each stage that is left, in order; None: not known."""

    def lines(self) -> list[str]:
        """The estimate in words."""
        stages = ", ".join(f"{stage} {in_words(seconds)}" for stage, seconds in self.seconds.items())
        rate = f" ({self.encoder_rate:,.3g} passages a second here)" if self.encoder_rate else ""
        return [
            f"{self.files:,} files, {self.bytes / 1e9:,.3g} GB: at most about {_rounded(self.passages):,} passages to "
            f"train on{rate}.",
            f"In all {in_words(total(self.seconds.values()))}: {stages}.",
            f"On disk about {self.disk_bytes / 1e9:,.3g} GB.",
        ]

    def markdown(self) -> str:
        """The estimate for the run's page."""
        rows = [f"| {stage} | {in_words(seconds)} |" for stage, seconds in self.seconds.items()]
        first, _, last = self.lines()
        return "\n".join(
            [
                "# What is ahead",
                "",
                first,
                "",
                "| stage | about |",
                "| --- | --- |",
                *rows,
                f"| **in all** | **{in_words(total(self.seconds.values()))}** |",
                "",
                f"{last} Fewer passages (`max_passages`) or a shorter look at each (`max_seq_length`) take less.",
            ]
        )

    def with_passages(self, passages: int) -> BuildEstimate:
        """The same, now that the number of passages is known."""
        ratio = passages / max(1, self.passages)
        seconds = {
            name: some if some is None or name not in (EMBED, CLUSTER) else some * ratio
            for name, some in self.seconds.items()
        }
        return replace(self, passages=passages, seconds=seconds)

    def left(self, stage: str, *, first: int, done: int, of: int, elapsed: float) -> float | None:
        """Seconds to the end of the build, from what a stage, which is under way, has taken so far.

        Args:
            first: what was done of it, `elapsed` seconds ago; `done` is now, of so many.
        """
        names = list(self.seconds)
        if stage not in names:
            return None
        here = elapsed * (of - done) / (done - first) if done > first else self.seconds[stage]
        return total([here, *(self.seconds[name] for name in names[names.index(stage) + 1 :])])


def estimate_build(
    sample: CorpusSample,
    *,
    disk_bytes: float,
    cores: int,
    encoder_rate: float | None,
    held_out_fraction: float,
    max_passages: int | None,
    tokenizer_sample: int,
    finished: Sequence[str] = (),
) -> BuildEstimate:
    """What building a store takes.

    Args:
        cores: of the machine, or of all of them.
        encoder_rate: passages a second; None where it is not known.
        tokenizer_sample: characters the tokenizer is trained on, at most; 0 if it is given.
        finished: the stages that are not done again.
    """
    characters = sample.bytes * sample.characters_per_byte
    passages = int((1 - held_out_fraction) * sample.passages)
    passages = min(passages, max_passages or passages)
    kept = characters * passages / max(1, sample.passages)
    seconds = {
        CUT: characters / 1e6 * CUT_SECONDS / cores,
        TRAIN: min(kept, tokenizer_sample) / 1e6 * TRAIN_SECONDS,
        EMBED: passages / encoder_rate if encoder_rate else None,
        CLUSTER: kept / 1e6 * CLUSTER_SECONDS / cores,
    }
    return BuildEstimate(
        files=sample.files,
        bytes=sample.bytes,
        passages=passages,
        disk_bytes=disk_bytes,
        encoder_rate=encoder_rate,
        seconds={stage: some for stage, some in seconds.items() if stage not in finished},
    )


def total(seconds: Iterable[float | None]) -> float | None:
    """The sum; None if one is not known."""
    summed = 0.0
    for some in seconds:
        if some is None:
            return None
        summed += some
    return summed


def in_words(seconds: float | None) -> str:
    """``40 s``, ``5 min``, ``2 h 10 min``, ``3 days 4 h``; rounded, as an estimate is."""
    if seconds is None:
        return "an unknown time"
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min" if minutes < 600 else f"{round(minutes / 60)} h"
    return f"{minutes // 1440} days {minutes % 1440 // 60} h"


def _rounded(number: int) -> int:
    """Two digits: no more are known."""
    step = 10 ** max(0, len(str(number)) - 2)
    return round(number / step) * step
