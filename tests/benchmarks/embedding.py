"""How much of the bare encoder's rate is left from passages on disk to embeddings on disk.

    python -m tests.benchmarks.embedding --passages 2048 --max-seq-length 64 --json result.json

In one run, on the same passages of the environment corpus and the same cores: the bare encoder (batches
tokenized and sorted by length beforehand, nothing but its forward pass), sentence-transformers' own ``encode``
of the whole list, and the pipeline (read, tokenize, forward, write, through Ray Data). The pipeline's rate is
counted from its first finished part, that is without starting Ray and loading the model, whose seconds are
given apart. Machines drift: the three take turns over several rounds, the bare encoder before and after each of
the others, and the median of the rounds' ratios counts.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import polars as pl
import torch

from flows.cluster import session
from pipeline.cores import available_cores, compute_on
from pipeline.corpus.listing import open_corpus
from pipeline.embeddings.build import BATCH_SIZE, build_embeddings, read_embeddings, unit_vectors
from pipeline.embeddings.embedder import DEFAULT, find_embedder, load_embedder
from pipeline.embeddings.runtimes import with_runtime
from pipeline.embeddings.word_pieces import embed_word_pieces, tokenize, tokenizer_of
from pipeline.passages.build import build_passages
from pipeline.passages.selection import Selection
from pipeline.tree.kmeans import KMeansSettings, fit_node
from pipeline.tree.nearest import assign
from storage_schema.corpus import part_files
from storage_schema.stage import open_stage


def bare(model, texts: list[str], max_seq_length: int) -> float:
    """Passages a second of the forward pass alone."""
    pieces = tokenize(tokenizer_of(model), texts, max_seq_length)
    begun = time.perf_counter()
    embed_word_pieces(model, pieces)
    return len(texts) / (time.perf_counter() - begun)


def encode(model, texts: list[str]) -> float:
    """Passages a second of ``SentenceTransformer.encode``, tokenizing included."""
    begun = time.perf_counter()
    model.encode(texts, batch_size=BATCH_SIZE[model.device.type], show_progress_bar=False)
    return len(texts) / (time.perf_counter() - begun)


def one_round(folder: Path, passages: Path, model, texts: list[str], options) -> dict[str, float]:
    """Each once, in passages per second, with what counts of them."""
    before = bare(model, texts, options.max_seq_length)
    row = {"bare": before, "encode": encode(model, texts)}
    between = bare(model, texts, options.max_seq_length)
    row |= pipeline(folder, passages, model, options.max_seq_length, options.use_gpu)
    after = bare(model, texts, options.max_seq_length)
    row |= {"bare_between": between, "bare_after": after}
    row["encode_over_bare"] = row["encode"] / ((before + between) / 2)
    row["pipeline_over_bare"] = row["pipeline"] / ((between + after) / 2)
    row["pipeline_over_encode"] = row["pipeline_over_bare"] / row["encode_over_bare"]
    print(", ".join(f"{name} {value:.2f}" for name, value in row.items()), flush=True)
    return row


def pipeline(folder: Path, passages: Path, model, max_seq_length: int, use_gpu: bool) -> dict[str, float]:
    """Passages a second from the first written part on, and the seconds before it."""
    begun = time.time()
    stage = open_stage(folder, kind="embeddings", configuration={}, inputs={})
    build_embeddings(
        stage,
        passages,
        find_embedder(DEFAULT),
        model,
        max_seq_length=max_seq_length,
        use_gpu=use_gpu,
    )
    # By when the parts were written: Ray hands results on later, several at once.
    written = sorted(
        (path.stat().st_mtime, len(read_embeddings(path)[0])) for path in folder.glob("part-*.arrow")
    )
    rows = sum(number for _, number in written[1:])
    rate = rows / (written[-1][0] - written[0][0])
    return {"pipeline": rate, "seconds_to_first_part": written[0][0] - begun}


def runtimes(texts: list[str], max_seq_length: int) -> dict[str, dict[str, float]]:
    """Of each runtime on the CPU: passages per second, and the share of passages it puts in another domain.

    The domains are 64 clusters of torch's float32 vectors of the same passages.
    """
    found, vectors = {}, {}
    for name in ("torch-float32", "openvino", "torch-bfloat16"):
        model = load_embedder(find_embedder(DEFAULT), max_seq_length=max_seq_length)
        pieces = tokenize(tokenizer_of(model), texts, max_seq_length)
        model = with_runtime(model, name)
        begun = time.perf_counter()
        vectors[name] = unit_vectors(embed_word_pieces(model, pieces), texts)
        found[name] = {"rate": len(texts) / (time.perf_counter() - begun)}
    centroids_kD = fit_node(vectors["torch-float32"], 64, KMeansSettings(), seed=0).centroids_kD
    labels = {name: assign(some, centroids_kD)[0] for name, some in vectors.items()}
    for name, row in found.items():
        row["other_domain"] = float((labels[name] != labels["torch-float32"]).mean())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--passages", type=int, default=2048)
    parser.add_argument("--max-seq-length", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--use-gpu", action="store_true")
    parser.add_argument("--runtimes", type=int, default=0, help="compare them too, on so many passages")
    parser.add_argument("--json", help="write the result there")
    options = parser.parse_args()
    session.connect()
    compute_on(available_cores())
    device = "cuda" if options.use_gpu else "cpu"
    model = load_embedder(find_embedder(DEFAULT), max_seq_length=options.max_seq_length, device=device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_passages(
            open_stage(folder / "passages", kind="passages", configuration={}, inputs={}),
            open_corpus("environment"),
            Selection(max_passages=options.passages),
            passage_characters=2000,
            max_bad_documents=100,
        )
        texts = pl.read_parquet(part_files(folder / "passages", "train"))["text"].to_list()
        bare(model, texts[:64], options.max_seq_length)
        rounds = [
            one_round(folder / f"round-{number}", folder / "passages", model, texts, options)
            for number in range(options.rounds)
        ]
    compared = {}
    if options.runtimes:
        compared = runtimes(texts[: options.runtimes], options.max_seq_length)
        for name, row in compared.items():
            print(f"{name}: {row['rate']:.1f} passages/s; {row['other_domain']:.2%} in another domain")
    names = ("pipeline_over_bare", "encode_over_bare", "pipeline_over_encode")
    ratios = {name: statistics.median(row[name] for row in rounds) for name in names}
    print(
        f"{len(texts)} passages at {options.max_seq_length} word pieces on {device}; medians of the rounds:"
    )
    print(", ".join(f"{name.replace('_', ' ')} {ratio:.1%}" for name, ratio in ratios.items()))
    if options.json:
        machine = f"{platform.machine()}, {available_cores()} cores, torch {torch.__version__}"
        chosen = {name: value for name, value in vars(options).items() if name != "json"}
        body = {
            "options": chosen,
            "rounds": rounds,
            "runtimes": compared,
            "ratios": ratios,
            "machine": machine,
        }
        Path(options.json).write_text(json.dumps(body, indent=1))


if __name__ == "__main__":
    main()
