"""Time and peak memory of everything but the encoder, at N and 10 N passages.

    python -m tests.benchmarks.partitioning --passages 100000 1000000 --json result.json

Synthetic text (random words, about 250 characters a passage) goes through cutting, selection and the
tokenizer; synthetic embeddings (points around 3000 centres of unequal weight, 384-d) take the encoder's place;
then the 64 x 64 tree and its partitions. Memory is that of all processes of the job (``memory.py``).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from flows.cluster import session
from pipeline.cores import available_cores
from pipeline.corpus.listing import open_corpus
from pipeline.domains.build import build_domains
from pipeline.domains.fitting import TreeSettings
from pipeline.domains.scatter import Folders
from pipeline.passages.build import build_passages
from pipeline.passages.selection import Selection
from pipeline.tasks import run_tasks
from pipeline.tokenizer import build_tokenizer
from pipeline.tree.kmeans import KMeansSettings
from storage_schema.corpus import part_files
from storage_schema.stage import open_stage
from tests.benchmarks.memory import Sampler
from tests.benchmarks.scale.inputs import embed_part

MARK = "SOE_BENCHMARK_OF_PARTITIONING"
FILE_PASSAGES = 20_000
VOCAB = {"vocab_size": 4096, "end_of_text": 0}


def write_text(folder: Path, number: int) -> None:
    """One document a passage, `FILE_PASSAGES` of them a JSON-lines file."""
    words = [f"w{word:x}" for word in range(20_000)]
    for first in range(0, number, FILE_PASSAGES):
        random = np.random.Generator(np.random.Philox(first))
        with open(folder / f"text-{first:09d}.jsonl", "w", encoding="utf-8") as file:
            for row in random.integers(0, len(words), (min(FILE_PASSAGES, number - first), 45)):
                file.write(json.dumps({"text": " ".join(words[word] for word in row)}) + "\n")


def job(folder: Path) -> None:
    """All stages, in a Ray session of this process; prints one JSON line a stage."""
    session.connect()

    def stage(kind: str, build) -> None:
        opened = open_stage(folder / "store" / kind, kind=kind, configuration=VOCAB, inputs={})
        begun = time.monotonic()
        build(opened)
        print(json.dumps({"stage": kind, "seconds": time.monotonic() - begun}), flush=True)

    def embeddings(opened) -> None:
        parts = part_files(passages, "train")
        targets = [opened.work / part.with_suffix(".arrow").name for part in parts]
        run_tasks(embed_part, [(str(a), str(b)) for a, b in zip(parts, targets, strict=True)])
        opened.finish({})

    passages, corpus = folder / "store" / "passages", open_corpus(str(folder / "text"))
    cut = dict(passage_characters=2000, max_bad_documents=0)
    stage("passages", lambda opened: build_passages(opened, corpus, Selection(), **cut))
    sample = dict(vocab_size=VOCAB["vocab_size"], sample_characters=5_000_000)
    stage("tokenizer", lambda opened: build_tokenizer(opened, passages, run=run_tasks, **sample))
    stage("embeddings", embeddings)
    tree = TreeSettings(
        coarse_clusters=64,
        leaf_clusters=64,
        kmeans=KMeansSettings(),
        sample=128_000,
        seed=0,
        searched_nodes=4,
    )
    names = ("passages", "embeddings", "tokenizer")
    paths = {name: str(folder / "store" / name) for name in names}
    stage("domains", lambda opened: build_domains(opened, Folders(**paths, work=str(opened.work)), tree))


def measure(number: int) -> dict:
    """Run the job on so many passages in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="soe-") as name:
        (Path(name) / "text").mkdir()
        write_text(Path(name) / "text", number)
        value = f"{os.getpid()}-{number}"
        with Sampler(f"{MARK}={value}") as sampler:
            done = subprocess.run(
                [sys.executable, "-m", "tests.benchmarks.partitioning", "--job", name],
                env=os.environ | {MARK: value},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
    stages = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {
        "passages": number,
        "peaks": sampler.take(),
        "seconds": {stage["stage"]: stage["seconds"] for stage in stages},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--passages", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--json", help="write the result there")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        job(Path(options.job))
        return
    runs = []
    for number in options.passages:
        runs.append(run := measure(number))
        seconds = ", ".join(f"{name} {value:.1f} s" for name, value in run["seconds"].items())
        peaks = ", ".join(f"{name} {value / 1e6:.0f} MB" for name, value in run["peaks"].items())
        print(f"{number:,} passages: {seconds}; peak memory {peaks}", flush=True)
    growth = {name: runs[-1]["peaks"][name] / peak for name, peak in runs[0]["peaks"].items()}
    print("peak memory grows by " + ", ".join(f"{value - 1:+.1%} ({name})" for name, value in growth.items()))
    if options.json:
        machine = f"{platform.machine()}, {available_cores()} cores"
        body = {"runs": runs, "growth": growth, "machine": machine}
        Path(options.json).write_text(json.dumps(body, indent=1))


if __name__ == "__main__":
    main()
