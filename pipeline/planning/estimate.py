"""How long building a store will take and how much disk it needs, estimated before the start and while it runs.

The encoder takes nine tenths of the time or more, so its rate is measured where the job runs (``trial.py``). The rates
of the other stages come from a real run (tests/benchmarks/records/2026-11-24-domains.md: 319 million characters read,
21.3 million kept in passages of 213, on 2 cores) and are divided by the number of cores. The whole is right within a
factor of about two. The stages but the encoder may take a fifth to a seventh of what is said, where passages are long
(the models in 2026-11-30-scale.json). Once a stage runs, its own rate is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from pipeline.corpus.large_files import UndividedFile

CUT, TRAIN, EMBED, CLUSTER = "cut passages", "train tokenizer", "embed passages", "cluster and write domains"
"""The stages' names in the job."""
CUT_SECONDS = 0.33
"""Seconds of one core per million characters of documents, to read, cut, compare and write them."""
TRAIN_SECONDS = 0.37
"""Seconds per million characters of the tokenizer's sample, on any number of cores."""
CLUSTER_SECONDS = 3.5
"""Seconds of one core per million characters of passages, to tokenize, cluster and write them; long passages take
less."""


@dataclass(frozen=True, kw_only=True)
class CorpusSample:
    """Averages over some documents of a corpus."""

    files: int
    """Number of files of the whole corpus."""
    bytes: int
    """Bytes of the whole corpus."""
    characters_per_byte: float
    """Characters of documents per byte of the files."""
    passages_per_byte: float
    texts: tuple[str, ...] = ()
    """Some passages."""
    undivided: tuple[UndividedFile, ...] = ()
    """Files of which one task must read much, the largest first."""

    @property
    def passages(self) -> int:
        """About how many passages the whole corpus has."""
        return int(self.bytes * self.passages_per_byte)


@dataclass(frozen=True, kw_only=True)
class BuildEstimate:
    """How long a build will take, and how much disk it needs."""

    files: int
    bytes: int
    passages: int
    """At most this many training passages; duplicates are known only once all passages are cut."""
    disk_bytes: float
    encoder_rate: float | None
    """Passages per second; None if not measured (on GPUs)."""
    seconds: dict[str, float | None]
    """Seconds of each stage that is left, in order; None if not known."""
    undivided: tuple[UndividedFile, ...] = ()
    """As those of the sample, while documents are still to be cut."""

    def lines(self) -> list[str]:
        """The estimate in words."""
        stages = ", ".join(f"{stage} {in_words(seconds)}" for stage, seconds in self.seconds.items())
        rate = f" ({self.encoder_rate:,.3g} passages per second here)" if self.encoder_rate else ""
        return [
            f"{self.files:,} files, {self.bytes / 1e9:,.3g} GB: at most about {_rounded(self.passages):,} passages to "
            f"train on{rate}.",
            f"In all {in_words(total(self.seconds.values()))}: {stages}.",
            f"On disk about {self.disk_bytes / 1e9:,.3g} GB.",
            *self.undivided_lines(),
        ]

    def undivided_lines(self) -> list[str]:
        """What one task must read alone, in words; nothing if every task has a bounded share."""
        if not self.undivided:
            return []
        largest = self.undivided[0]
        more = f" (and so of {len(self.undivided) - 1:,} more)" if self.undivided[1:] else ""
        return [
            f"{largest.name} {largest.reason}, so one core reads {largest.bytes / 1e9:,.3g} GB of it alone{more}. "
            "To use more cores, save it as several files, as JSON lines that are not compressed, or as Parquet of "
            "small row groups."
        ]

    def markdown(self) -> str:
        """The estimate for the run's page."""
        rows = [f"| {stage} | {in_words(seconds)} |" for stage, seconds in self.seconds.items()]
        first, _, *last = self.lines()
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
                *(line for sentence in last for line in ("", sentence)),
            ]
        )

    def with_passages(self, passages: int) -> BuildEstimate:
        """The estimate for a number of passages that is now known."""
        ratio = passages / max(1, self.passages)
        seconds = {
            name: some if some is None or name not in (EMBED, CLUSTER) else some * ratio
            for name, some in self.seconds.items()
        }
        return replace(self, passages=passages, seconds=seconds)

    def left(self, stage: str, *, first: int, done: int, of: int, elapsed: float) -> float | None:
        """Seconds to the end of the build, from the progress of the stage that runs now. None if not known.

        Args:
            stage: the name of the running stage.
            first: how much of it was done `elapsed` seconds ago.
            done: how much of it is done now.
            of: how much there is to do.
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
    """Estimate how long building a store takes.

    Args:
        cores: the number of cores of all machines.
        encoder_rate: passages per second; None if it is not known.
        tokenizer_sample: the tokenizer is trained on at most this many characters; 0 if it is given.
        finished: the stages that are already finished.
    """
    characters = sample.bytes * sample.characters_per_byte
    passages = int((1 - held_out_fraction) * sample.passages)
    passages = min(passages, max_passages or passages)
    alone = sample.undivided[0].bytes * sample.characters_per_byte if sample.undivided else 0
    kept = characters * passages / max(1, sample.passages)
    seconds = {
        CUT: max(characters / cores, alone) / 1e6 * CUT_SECONDS,
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
        undivided=() if CUT in finished else sample.undivided,
    )


def total(seconds: Iterable[float | None]) -> float | None:
    """The sum; None if one of them is None."""
    summed = 0.0
    for some in seconds:
        if some is None:
            return None
        summed += some
    return summed


def in_words(seconds: float | None) -> str:
    """Rounded, such as ``40 s``, ``5 min``, ``2 h 10 min`` or ``3 days 4 h``."""
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
    """The number rounded to two digits, which is all that an estimate knows."""
    step = 10 ** max(0, len(str(number)) - 2)
    return round(number / step) * step
