"""Passages → unit vectors, with any sentence-transformers model.

There is one part of embeddings per part of training passages, with the same rows in the same order, so each part is
made (or made again after a crash) on its own. Ray Data tokenizes the parts in tasks and runs them through actors that
load the model once; a few passages are embedded in this process, which has loaded the model already. The encoder
reads only the first ``max_seq_length`` word pieces of a passage. That number, the runtime and its precision are
settings, and the manifest records them.

Legend: D embedding size.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.cores import available_cores, compute_on
from pipeline.embeddings.embedder import EmbedderWeights, load_embedder
from pipeline.embeddings.runtimes import AUTO, RUNTIME_RECORD, Runtime, runtime_of_stage, with_runtime
from pipeline.embeddings.word_pieces import WordPieces, embed_word_pieces, tokenize, tokenizer_of
from pipeline.tasks import Report, ignore_progress, run_tasks
from storage_schema.arrow_files import check_schema, read_arrow, read_parquet
from storage_schema.aside import written_aside
from storage_schema.corpus import embeddings_schema, part_files, rows_of
from storage_schema.errors import UserError
from storage_schema.manifest import Manifest
from storage_schema.stage import Stage

BATCH_SIZE = {"cpu": 32, "cuda": 256}
FEW = 1000
"""So many passages are embedded sooner than an actor has started and loaded the model, half a minute on two cores."""


def embed_texts(model: Any, texts: Sequence[str]) -> np.ndarray:
    """Embed texts in this process.

    Args:
        model: from :func:`pipeline.embeddings.embedder.load_embedder`.

    Returns:
        float32 ``[len(texts), D]`` of unit norm.

    Raises:
        ValueError: the vector of a text is zero or not finite; the message gives the text's number.
    """
    vectors = model.encode(
        list(texts), batch_size=BATCH_SIZE[model.device.type], convert_to_numpy=True, show_progress_bar=False
    )
    return unit_vectors(np.asarray(vectors, np.float32).reshape(len(texts), -1), texts)


def unit_vectors(vectors: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """The vectors of `texts` divided by their norms; raises ValueError as :func:`embed_texts` does."""
    norms = np.linalg.norm(vectors, axis=1)
    bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if len(bad):
        raise UserError(
            f"The embedder gives text {bad[0]} a vector of norm {norms[bad[0]]}: {texts[bad[0]][:80]!r}. "
            "Use another embedder, or remove the text."
        )
    return vectors / norms[:, None]


def build_embeddings(
    stage: Stage,
    passages: str | Path,
    weights: EmbedderWeights,
    model: Any,
    *,
    max_seq_length: int,
    runtime: str = AUTO,
    use_gpu: bool = False,
    report: Report = ignore_progress,
) -> Manifest:
    """Build the ``embeddings`` stage from a finished ``passages`` folder, in the running Ray session.

    Args:
        model: `weights`, loaded on the CPU. Its tokenizer is used, and it may be timed in several runtimes.
        runtime: ``auto``, ``measured``, or a :data:`pipeline.embeddings.runtimes.Runtime`.
    """
    parts = part_files(passages, "train")
    rows = rows_of(parts)
    stage.scratch.mkdir(exist_ok=True)
    if (early := stage.work / RUNTIME_RECORD).exists():  # earlier releases kept it beside the parts
        early.replace(stage.scratch / RUNTIME_RECORD)
    chosen = runtime_of_stage(stage.scratch, runtime, model, passages=sum(rows), use_gpu=use_gpu)
    targets = [stage.work / part.with_suffix(".arrow").name for part in parts]
    missing = [number for number, target in enumerate(targets) if not target.exists()]
    done = sum(rows) - sum(rows[number] for number in missing)
    report(done, sum(rows))
    if missing:
        items = [{"passages": str(parts[number]), "target": str(targets[number])} for number in missing]
        tokenizing = TokenizePart(tokenizer_of(model), max_seq_length)
        if sum(rows) - done <= FEW and chosen == "torch-float32" and not use_gpu:
            embedding = _in_this_process(items, model, tokenizing)
        else:
            embedding = _through_actors(items, weights, tokenizing, chosen, use_gpu)
        for embedded in embedding:
            done += embedded
            report(done, sum(rows))
    counts = {
        "passages": sum(rows),
        "size": pa.ipc.open_file(str(targets[0])).schema.field("embedding").type.list_size,
        "embedder_origin": weights.origin,
        "embedded_on": "gpu" if use_gpu else "cpu",
        "runtime": chosen,
    }
    return stage.finish(counts, run=run_tasks)


class TokenizePart:
    """The Ray Data task: tokenizes a part of passages, if the model allows tokenizing apart from it."""

    def __init__(self, tokenizer_json: str | None, max_seq_length: int):
        self.tokenizer_json, self.max_seq_length = tokenizer_json, max_seq_length

    def pieces(self, passages: str) -> WordPieces:
        """The word pieces of the part; none if the model has to tokenize for itself."""
        if self.tokenizer_json is None:
            return WordPieces(np.empty(0, np.int32), np.empty(0, np.int32))
        table = read_parquet(passages, columns=["text"])
        return tokenize(self.tokenizer_json, table["text"].to_pylist(), self.max_seq_length)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        pieces = self.pieces(str(batch["passages"][0]))
        return batch | {"ids": [pieces.ids], "lengths": [pieces.lengths_N]}


class EmbedPart:
    """The Ray Data actor: embeds a part and writes its part of embeddings."""

    def __init__(self, weights: EmbedderWeights, max_seq_length: int, runtime: Runtime, device: str):
        if device == "cpu":
            compute_on(available_cores())
        self.model = load_embedder(weights, max_seq_length=max_seq_length, device=device)
        self.model = with_runtime(self.model, runtime)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list]:
        source, target = str(batch["passages"][0]), str(batch["target"][0])
        # Ray Data passes on only the text of an exception, so errors for the user are returned as rows.
        try:
            pieces = WordPieces(np.asarray(batch["ids"][0]), np.asarray(batch["lengths"][0]))
            return {"rows": [_embed(self.model, source, target, pieces)], "errno": [0], "error": [""]}
        except OSError as error:
            return {"rows": [0], "errno": [error.errno or errno.EIO], "error": [str(error)]}
        except UserError as error:
            return {"rows": [0], "errno": [0], "error": [str(error)]}


def _embed(model: Any, source: str, target: str, pieces: WordPieces) -> int:
    """Embed a part and write its part of embeddings; returns its rows."""
    table = read_parquet(source, columns=["passage_id", "document_id", "text"])
    texts = table["text"].to_pylist()
    try:
        if len(pieces.lengths_N):
            vectors = unit_vectors(embed_word_pieces(model, pieces), texts)
        else:
            vectors = embed_texts(model, texts)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    write_embeddings(target, table["passage_id"].to_numpy(), vectors)
    return len(table)


def write_embeddings(path: str, passage_ids: np.ndarray, vectors: np.ndarray) -> None:
    """Write one part aside and rename it. `vectors` is float ``[rows, D]`` and is stored as float16."""
    schema = embeddings_schema(vectors.shape[1])
    column = pa.FixedSizeListArray.from_arrays(
        pa.array(vectors.astype(np.float16).reshape(-1)), type=schema.field("embedding").type
    )
    with written_aside(path) as aside, pa.ipc.new_file(str(aside), schema) as writer:
        writer.write_batch(pa.record_batch([pa.array(passage_ids, pa.int64()), column], schema=schema))


def read_embeddings(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Read one part: passage ids int64 ``[rows]`` and vectors float16 ``[rows, D]``, memory-mapped.

    Raises :class:`StoreError` if the file is missing, damaged, or something else.
    """
    table = read_arrow(path, what="embeddings")
    found = table.schema.field("embedding").type if "embedding" in table.schema.names else None
    size = found.list_size if isinstance(found, pa.FixedSizeListType) else 1
    check_schema(table.schema, embeddings_schema(size), path, what="embeddings")
    return table["passage_id"].to_numpy(), embeddings_of(table)


def embeddings_of(table: pa.Table) -> np.ndarray:
    """The column ``embedding``, float16 ``[rows, D]``; not copied if the table is one batch."""
    column = table["embedding"].combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), column.type.list_size)


def _in_this_process(items: list[dict], model: Any, tokenizing: TokenizePart) -> Iterator[int]:
    """As :func:`_through_actors`, with the model that is loaded here, on as many threads as an actor has."""
    import torch

    before = torch.get_num_threads()
    compute_on(available_cores())
    try:
        for item in items:
            yield _embed(model, item["passages"], item["target"], tokenizing.pieces(item["passages"]))
    finally:
        torch.set_num_threads(before)


def _through_actors(
    items: list[dict],
    weights: EmbedderWeights,
    tokenizing: TokenizePart,
    runtime: Runtime,
    use_gpu: bool,
) -> Iterator[int]:
    """Yield the number of rows of each part once its embeddings are written."""
    import ray.data  # slow to import, and tasks of other stages import this module

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # One actor uses all cores of a machine, or one GPU.
    nodes = sum(1 for node in ray.nodes() if node["Alive"])
    actors = int(ray.cluster_resources().get("GPU", 1)) if use_gpu else nodes
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    dataset = dataset.map_batches(tokenizing.__call__, batch_size=1, num_cpus=1).map_batches(
        EmbedPart,
        fn_constructor_args=(weights, tokenizing.max_seq_length, runtime, "cuda" if use_gpu else "cpu"),
        batch_size=1,
        num_cpus=1,
        num_gpus=1 if use_gpu else 0,
        compute=ray.data.ActorPoolStrategy(size=min(actors, len(items))),
    )
    yield from rows_embedded(dataset.iter_rows())


def rows_embedded(parts: Iterable[dict[str, Any]]) -> Iterator[int]:
    """The rows of each part that an :class:`EmbedPart` wrote; raises the error that it returned in place of one."""
    for row in parts:
        if row["errno"]:
            raise OSError(row["errno"], row["error"])
        if row["error"]:
            raise UserError(row["error"])
        yield row["rows"]
