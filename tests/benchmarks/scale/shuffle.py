"""Rows dealt to their domains by our own two steps, and by Ray Data's hash shuffle: seconds and memory, side by side.

    python -m tests.benchmarks.scale.shuffle --folder FOLDER --rows 100000 400000 --json result.json

Synthetic rows as they are after assignment lie in Parquet files of 4,000 each. Ours sort each file by coarse node and
write it, then read each node's slices and write its domains, as build-domains does. Ray Data groups by the domain and
writes each group. Both write the same partitions, which is checked. In turn, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from flows.cluster import session
from pipeline.domains.leaves import _write_partitions, write_node
from pipeline.domains.scatter import Folders, scatter_schema, write_batch
from pipeline.tasks import run_tasks, share
from storage_schema.domains import partition_path
from storage_schema.manifest import write_atomically
from tests.benchmarks.memory import Sampler
from tests.benchmarks.scale.job import warm

MARK = "SOE_BENCHMARK_OF_SHUFFLES=1"
FILE_ROWS, TOKENS, NODES = 4_000, 250, 64
"""Tokens of a row; coarse nodes, and leaves of each."""
VOCAB_SIZE = 4096
WAYS = "own", "ray-data"


def write_rows(folder: Path, rows: int) -> None:
    """Rows with random domains."""
    folder.mkdir(parents=True)
    for number, first in enumerate(range(0, rows, FILE_ROWS)):
        random = np.random.Generator(np.random.Philox(number))
        count = min(FILE_ROWS, rows - first)
        columns = [
            pa.array(np.arange(first, first + count)),
            pa.array([f"d{row}" for row in range(first, first + count)]),
            pa.array(["source"] * count),
            pa.array(random.random(count, np.float32)),
            pa.LargeListArray.from_arrays(
                pa.array(np.arange(count + 1, dtype=np.int64) * TOKENS),
                pa.array(random.integers(1, VOCAB_SIZE, count * TOKENS).astype(np.uint16)),
            ),
            pa.array(random.integers(0, NODES * NODES, count)),
        ]
        pq.write_table(
            pa.table(columns, schema=scatter_schema(VOCAB_SIZE)), folder / f"rows-{number:05d}.parquet"
        )


def sort_rows(source: Path, folders: Folders) -> np.ndarray:
    """Write a file's rows in the order of their nodes; returns how many each has."""
    table = pq.read_table(source, schema=scatter_schema(VOCAB_SIZE))
    node_N = table["domain"].to_numpy() // NODES
    rows_C = np.bincount(node_N, minlength=NODES)
    [batch] = table.take(np.argsort(node_N, kind="stable")).combine_chunks().to_batches()
    write_batch(folders.scattered(source.stem), batch, rows_C.tolist())
    return rows_C


def own(sources: list[Path], work: Path) -> None:
    """As pipeline/domains does."""
    folders = Folders(passages="", embeddings="", tokenizer="", work=str(work))
    folders.scratch.mkdir()
    rows = run_tasks(sort_rows, [(source, folders) for source in sources])
    scattered = share(([source.stem for source in sources], np.stack(rows)))
    run_tasks(write_node, [(folders, node, scattered, NODES) for node in range(NODES)])


def ray_data(sources: list[Path], work: Path) -> None:
    """The rows of each coarse node as a group of a dataset."""
    from ray.data.context import DataContext, ShuffleStrategy

    DataContext.get_current().shuffle_strategy = ShuffleStrategy.HASH_SHUFFLE

    def with_node(table: pa.Table) -> pa.Table:
        return table.append_column("node", pa.array(table["domain"].to_numpy() // NODES))

    def write(group: pa.Table) -> pa.Table:
        leaf_N = group["domain"].to_numpy() % NODES
        rows = (
            group.drop_columns(["domain", "node"]).cast(scatter_schema(VOCAB_SIZE).remove(5)).combine_chunks()
        )
        leaves = (rows.filter(pa.array(leaf_N == leaf)).to_batches() for leaf in range(NODES))
        _write_partitions(work / partition_path(group["node"][0].as_py()), leaves, rows.schema)
        return pa.table({"rows": [len(group)]})

    files = [str(source) for source in sources]
    groups = ray.data.read_parquet(files).map_batches(with_node, batch_format="pyarrow")
    groups = groups.groupby("node", num_partitions=NODES)
    groups.map_groups(write, batch_format="pyarrow").materialize()


def job(way: str, source: Path, work: Path) -> dict[str, Any]:
    """One way, in a Ray session of this process."""
    session.connect()
    sources = sorted(source.glob("*.parquet"))
    run_tasks(warm, [()] * int(ray.cluster_resources()["CPU"]))
    with Sampler(MARK) as sampler:
        begun = time.monotonic()
        (own if way == "own" else ray_data)(sources, work)
        seconds = time.monotonic() - begun
    digests = {path.name: sha256(path.read_bytes()).hexdigest() for path in work.glob("node-*")}
    return {"way": way, "seconds": seconds, "peak_bytes": sampler.take()["proportional"], "digests": digests}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 400_000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    options = parser.parse_args()
    source, work = options.folder / "rows", options.folder / "work"
    if options.way:
        return write_atomically(options.json, json.dumps(job(options.way, source, work)))
    environment = os.environ | dict([MARK.split("=")])
    module = [sys.executable, "-m", "tests.benchmarks.scale.shuffle", "--folder", str(options.folder)]
    found = []
    for rows in options.rows:
        shutil.rmtree(source, ignore_errors=True)
        write_rows(source, rows)
        expected = None
        for way in WAYS * options.repeats:
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            subprocess.run([*module, "--way", way, "--json", str(options.json)], check=True, env=environment)
            one = json.loads(options.json.read_text())
            digests = one.pop("digests")
            expected = digests if expected is None else expected
            found.append(
                {"rows": rows, "same_partitions": digests == expected, "partitions": len(digests)} | one
            )
            print(found[-1], flush=True)
    write_atomically(options.json, json.dumps(found, indent=1))
    sys.exit(not all(one["same_partitions"] for one in found))


if __name__ == "__main__":
    main()
