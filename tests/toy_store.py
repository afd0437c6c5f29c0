"""A finished store of random tokens or of given texts, made without embedding anything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.tokenizer import load_tokenizer, train_tokenizer
from storage_schema.domains import INDEX, partition_path, partition_schema
from storage_schema.stage import Stage, open_stage
from storage_schema.tree import Tree

VOCAB = 64


def make_store(
    folder: Path, sizes: list[int], seed: int = 0, embedding_size: int = 6, vocab_size: int = VOCAB
) -> Path:
    """Domains of the given numbers of random tokens (0 leaves a domain empty), with a tokenizer and a tree."""
    rng = np.random.Generator(np.random.PCG64(seed))
    # Each domain has its own favourite tokens, so that there is something to learn.
    streams = [rng.integers(1, 8, size) + 7 * (domain % 8) for domain, size in enumerate(sizes)]
    return write_store(folder, streams, seed=seed, embedding_size=embedding_size, vocab_size=vocab_size)


def write_store(
    folder: Path,
    streams: list[np.ndarray],
    *,
    seed: int = 0,
    embedding_size: int = 6,
    vocab_size: int = VOCAB,
) -> Path:
    """Domains that hold the given token streams: tokens of two bytes, or of four for a vocabulary beyond 65,536."""
    rng = np.random.Generator(np.random.PCG64(seed))
    sizes = [len(stream) for stream in streams]
    stage = _open_domains(folder, seed, vocab_size)
    schema = partition_schema(vocab_size)
    for domain, size in enumerate(sizes):
        if not size:
            continue
        tokens = pa.array(streams[domain]).cast(schema.field("tokens").type.value_type)
        path = stage.work / partition_path(domain)
        path.parent.mkdir(exist_ok=True)
        batch = pa.record_batch(
            [
                pa.array([domain]),
                pa.array(["document"]),
                pa.array(["toy"]),
                pa.array([0.0], pa.float32()),
                pa.LargeListArray.from_arrays(pa.array([0, size], pa.int64()), tokens),
            ],
            schema=schema,
        )
        with pa.ipc.new_file(str(path), schema) as writer:
            writer.write_batch(batch)
    _finish(stage, [int(n > 0) for n in sizes], sizes, rng.normal(size=(len(sizes), embedding_size)))
    _write_tokenizer(folder)
    return folder


def write_texts(folder: Path, domains: list[list[str]], *, coarse: int = 1) -> Path:
    """Domains that hold the given passages, each a document; their sources are `even` and `odd` in turn.

    The tokenizer is a byte-level BPE. Passages lie the further from the centroid the later they come.
    """
    texts = [text for passages in domains for text in passages]
    stage = open_stage(folder / "tokenizer", kind="tokenizer", configuration={}, inputs={})
    train_tokenizer(iter([texts]), vocab_size=400).save(str(stage.work / "tokenizer.json"))
    tokenizer = load_tokenizer(stage.work)
    stage.finish({})
    stage = _open_domains(folder, len(texts), tokenizer.vocab_size)
    schema = partition_schema(tokenizer.vocab_size)
    sizes = []
    for domain, passages in enumerate(domains):
        tokens = tokenizer.encode(passages)
        sizes.append(sum(map(len, tokens)))
        if not passages:
            continue
        rows = range(len(passages))
        columns = [
            pa.array(list(rows)),
            pa.array([f"document-{row}" for row in rows]),
            pa.array([("even", "odd")[row % 2] for row in rows]),
            pa.array([0.5 + row / 100 for row in rows], pa.float32()),
            pa.array(tokens, schema.field("tokens").type),
        ]
        path = stage.work / partition_path(domain)
        path.parent.mkdir(exist_ok=True)
        with pa.ipc.new_file(str(path), schema) as writer:
            writer.write_batch(pa.record_batch(columns, schema=schema))
    _finish(stage, [len(passages) for passages in domains], sizes, np.eye(len(domains)), coarse)
    return folder


def _open_domains(folder: Path, seed: int, vocab_size: int) -> Stage:
    return open_stage(
        folder / "domains",
        kind="domains",
        configuration={"vocab_size": vocab_size, "end_of_text": 0},
        inputs={"toy": str(seed)},
    )


def _finish(
    stage: Stage, passages: list[int], sizes: list[int], leaves_KD: np.ndarray, coarse: int = 1
) -> None:
    """Write the index and the tree, then the manifest."""
    index = pa.table({"domain": np.arange(len(sizes)), "passages": passages, "tokens": sizes}).cast(INDEX)
    with pa.ipc.new_file(str(stage.work / "index.arrow"), INDEX) as writer:
        writer.write_table(index)
    leaves_KD = leaves_KD.astype(np.float32)
    Tree(
        coarse_CD=leaves_KD[:coarse],
        leaves_KD=leaves_KD,
        counts_K=np.array(sizes),
        mean_distance_K=np.zeros(len(sizes), np.float32),
    ).write(stage.work / "tree.arrow")
    stage.finish({"tokens": int(sum(sizes))})


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
