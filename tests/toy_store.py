"""A finished store of random tokens, made without embedding anything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from storage_schema.domains import INDEX, Tree, partition_path, partition_schema
from storage_schema.manifest import open_stage

VOCAB = 64


def make_store(folder: Path, sizes: list[int], seed: int = 0, embedding_size: int = 6) -> Path:
    """Domains of the given numbers of random tokens (0 leaves a domain empty), with a tokenizer and a tree."""
    rng = np.random.Generator(np.random.PCG64(seed))
    # Each domain has its own favourite tokens, so that there is something to learn.
    streams = [rng.integers(1, 8, size) + 7 * (domain % 8) for domain, size in enumerate(sizes)]
    return write_store(folder, streams, seed=seed, embedding_size=embedding_size)


def write_store(folder: Path, streams: list[np.ndarray], *, seed: int = 0, embedding_size: int = 6) -> Path:
    """Domains that hold the given token streams."""
    rng = np.random.Generator(np.random.PCG64(seed))
    sizes = [len(stream) for stream in streams]
    stage = open_stage(
        folder / "domains",
        kind="domains",
        configuration={"vocab_size": VOCAB, "end_of_text": 0},
        inputs={"toy": str(seed)},
    )
    schema = partition_schema(VOCAB)
    for domain, size in enumerate(sizes):
        if not size:
            continue
        tokens = streams[domain].astype(np.uint16)
        path = stage.work / partition_path(domain)
        path.parent.mkdir(exist_ok=True)
        batch = pa.record_batch(
            [
                pa.array([domain]),
                pa.array(["document"]),
                pa.array(["toy"]),
                pa.array([0.0], pa.float32()),
                pa.LargeListArray.from_arrays(pa.array([0, size], pa.int64()), pa.array(tokens)),
            ],
            schema=schema,
        )
        with pa.ipc.new_file(str(path), schema) as writer:
            writer.write_batch(batch)
    index = pa.table(
        {"domain": np.arange(len(sizes)), "passages": [int(n > 0) for n in sizes], "tokens": sizes}
    ).cast(INDEX)
    with pa.ipc.new_file(str(stage.work / "index.arrow"), INDEX) as writer:
        writer.write_table(index)
    leaves = rng.normal(size=(len(sizes), embedding_size)).astype(np.float32)
    Tree(
        coarse_CD=leaves[:1],
        leaves_KD=leaves,
        counts_K=np.array(sizes),
        mean_distance_K=np.zeros(len(sizes), np.float32),
    ).write(stage.work / "tree.arrow")
    stage.finish({"tokens": int(sum(sizes))})
    _write_tokenizer(folder)
    return folder


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    vocabulary = {"<|endoftext|>": 0, **{f"w{i}": i for i in range(1, VOCAB)}}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    for kind, configuration in (("tokenizer", {}), ("embeddings", {"embedder": "none", "max_seq_length": 8})):
        stage = open_stage(folder / kind, kind=kind, configuration=configuration, inputs={})
        if kind == "tokenizer":
            tokenizer.save(str(stage.work / "tokenizer.json"))
        stage.finish({})
