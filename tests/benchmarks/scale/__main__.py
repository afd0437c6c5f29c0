"""How each stage of build-domains grows. Synthetic embeddings take the encoder's place, but in a cell of its own.

    python -m tests.benchmarks.scale --folder FOLDER --size small      # about ten minutes on two cores
    python -m tests.benchmarks.scale --folder FOLDER --size real       # an hour and a half, 20 GB of disk
    python -m tests.benchmarks.scale --folder FOLDER --report --json result.json

Each cell (``sizes.py``) runs in a process of its own and leaves FOLDER/cells/NAME.json. The same command again runs
only the cells that are missing. Then the tables are printed: seconds, CPU seconds and peak memory of each stage at N,
4 N and 16 N passages, with log-log slopes; a model of each stage, and what it gives for 10^9 passages.

On a machine that does other work, CPU seconds say more than seconds. The models are fitted to them.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from pipeline.cores import available_cores
from storage_schema.manifest import write_atomically
from tests.benchmarks.scale import job
from tests.benchmarks.scale.report import read_cells, summary, tables
from tests.benchmarks.scale.sizes import Cell, cells


def run_cell(cell: Cell, folder: Path) -> None:
    """Run a cell in a process of its own, unless it is done."""
    done = folder / "cells" / f"{cell.name}.json"
    if done.exists():
        print(f"{cell.name}: is there", flush=True)
        return
    print(f"{cell.name}: running", flush=True)
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    done.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tests.benchmarks.scale", "--folder", str(work)]
    subprocess.run([*command, "--cell", json.dumps(cell.record()), "--json", str(done)], check=True)
    shutil.rmtree(work)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="of the cells, and where they work")
    parser.add_argument("--size", choices=("small", "real"), default="small")
    parser.add_argument("--large-bytes", type=int, help="size of the one large file")
    parser.add_argument("--additions", type=int, help="how many")
    parser.add_argument("--only", nargs="+", default=[], help="names of cells")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--cell", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = options.folder.resolve()
    if options.cell:
        figures = job.run(Cell(**options.cell), folder)
        write_atomically(options.json, json.dumps(figures, indent=1))
        return
    if not options.report:
        for cell in cells(options.size, large_bytes=options.large_bytes, additions=options.additions):
            if not options.only or cell.name in options.only:
                run_cell(cell, folder)
    there = read_cells(folder / "cells")
    found = summary(there)
    print(tables(there, found))
    if options.json:
        machine = f"{platform.machine()}, {available_cores()} cores"
        options.json.write_text(json.dumps({"machine": machine, **found, "cells": there}, indent=1))


if __name__ == "__main__":
    main()
