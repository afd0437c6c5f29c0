"""A finished store of random tokens or of given texts, made without embedding anything."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.tokenizer import load_tokenizer, train_tokenizer
from storage_schema.arrow_files import place_of_values
from storage_schema.aside import written_aside
from storage_schema.domains import INDEX, DomainVolume, partition_path, partition_schema
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
    per_file: int = 1,
    inputs: dict[str, str] | None = None,
) -> Path:
    """Domains that hold the given token streams: tokens of two bytes, or of four for a vocabulary beyond 65,536.

    Args:
        per_file: how many domains lie in one file.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    sizes = [len(stream) for stream in streams]
    stage = _open_domains(folder, seed, vocab_size, inputs)
    schema = partition_schema(vocab_size)
    batches = []
    for domain, size in enumerate(sizes):
        tokens = pa.array(streams[domain]).cast(schema.field("tokens").type.value_type)
        columns = [
            pa.array([domain]),
            pa.array(["document"]),
            pa.array(["toy"]),
            pa.array([0.0], pa.float32()),
            pa.LargeListArray.from_arrays(pa.array([0, size], pa.int64()), tokens),
        ]
        batches.append(pa.record_batch([column[: int(size > 0)] for column in columns], schema=schema))
    places = write_batches(stage.work, batches, per_file)
    _finish(stage, [int(n > 0) for n in sizes], sizes, rng.normal(size=(len(sizes), embedding_size)), places)
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
    sizes, batches = [], []
    for passages in domains:
        tokens = tokenizer.encode(passages)
        sizes.append(sum(map(len, tokens)))
        rows = range(len(passages))
        columns = [
            pa.array(list(rows), pa.int64()),
            pa.array([f"document-{row}" for row in rows], pa.string()),
            pa.array([("even", "odd")[row % 2] for row in rows], pa.string()),
            pa.array([0.5 + row / 100 for row in rows], pa.float32()),
            pa.array(tokens, schema.field("tokens").type),
        ]
        batches.append(pa.record_batch(columns, schema=schema))
    places = write_batches(stage.work, batches, 1)
    _finish(stage, [len(passages) for passages in domains], sizes, np.eye(len(domains)), places, coarse)
    return folder


def write_batches(folder: Path, batches: list[pa.RecordBatch], per_file: int) -> list[tuple[int, int]]:
    """Write the domains' passages, so many domains to a file, and none where all are empty; returns where they lie."""
    places = []
    for number in range(-(-len(batches) // per_file)):
        some = batches[number * per_file : (number + 1) * per_file]
        path = folder / partition_path(number)
        if any(map(len, some)):
            places += [(number, at) for at in write_file(path, some)]
        else:
            places += [(number, 0)] * len(some)
    return places


def write_file(path: Path, batches: list[pa.RecordBatch]) -> list[int]:
    """Write a file of some domains; returns where each one's tokens begin."""
    with written_aside(path) as aside, pa.ipc.new_file(str(aside), batches[0].schema) as writer:
        for batch in batches:  # they may be mapped from the file that is replaced
            writer.write_batch(batch)
    with pa.memory_map(str(path)) as source:
        buffer = source.read_buffer()
        file = pa.ipc.open_file(buffer)
        return [
            place_of_values(file.get_batch(at)["tokens"], buffer) if len(batch) else 0
            for at, batch in enumerate(batches)
        ]


def replace_batch(folder: Path, domain: int, batch: pa.RecordBatch) -> None:
    """Put other passages in the place of a domain's, below `folder`, and its tokens' places into the index."""
    volume = DomainVolume(folder)
    file = int(volume.file_K[domain])
    domains = np.flatnonzero(volume.file_K == file).tolist()
    path = volume.folder / volume.name(file)
    with pa.ipc.open_file(pa.py_buffer(path.read_bytes())) as reader:
        batches = [batch if one == domain else reader.get_batch(at) for at, one in enumerate(domains)]
    index = (
        pa.ipc.open_file(pa.py_buffer((volume.folder / "index.arrow").read_bytes())).read_all().to_pydict()
    )
    for one, at in zip(domains, write_file(path, batches), strict=True):
        index["tokens_at"][one] = at
    write_index(volume.folder, list(index.values()))


def in_version_1(folder: Path) -> None:
    """Write the domains of `folder` as releases did whose schema version was 1: one file per domain."""
    volume = DomainVolume(folder)
    old = volume.folder.with_name("version-2")
    volume.folder.rename(old)
    volume.folder = old
    stage = open_stage(
        folder / "domains",
        kind="domains",
        configuration=volume.manifest.configuration,
        inputs=volume.manifest.inputs,
    )
    for domain in np.flatnonzero(volume.passages_K).tolist():
        path = stage.work / f"domain={domain:04d}/part-00000.arrow"
        path.parent.mkdir()
        write_file(path, [volume.batch(domain)])
    shutil.copy(old / "tree.arrow", stage.work)
    columns = [np.arange(len(volume.tokens_K)), volume.passages_K, volume.tokens_K]
    write_index(stage.work, columns)
    manifest = replace(stage.finish(volume.manifest.counts), schema_version=1)
    (folder / "domains/manifest.json").write_text(manifest.to_json())
    shutil.rmtree(old)


def write_index(folder: Path, columns: list) -> None:
    """Write the index of domains; without places if it has three columns."""
    schema = pa.schema(list(INDEX)[: len(columns)])
    with pa.ipc.new_file(str(folder / "index.arrow"), schema) as writer:
        writer.write_table(pa.table(columns, names=schema.names).cast(schema))


def _open_domains(folder: Path, seed: int, vocab_size: int, inputs: dict[str, str] | None = None) -> Stage:
    return open_stage(
        folder / "domains",
        kind="domains",
        configuration={"vocab_size": vocab_size, "end_of_text": 0},
        inputs={"toy": str(seed)} | (inputs or {}),
    )


def _finish(
    stage: Stage,
    passages: list[int],
    sizes: list[int],
    leaves_KD: np.ndarray,
    places: list[tuple[int, int]],
    coarse: int = 1,
) -> None:
    """Write the index and the tree, then the manifest."""
    columns = [np.arange(len(sizes)), passages, sizes, *map(list, zip(*places, strict=True))]
    write_index(stage.work, columns)
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
