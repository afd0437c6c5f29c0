"""Our stream beside what a user would pick instead: K weighted domains of token sequences, B = 128, L = 1024.

    make bench-peers
    python -m tests.benchmarks.peers.compare --json result.json --domains 64 --runs 1

Every contestant reads the same windows, each in its own format, and delivers torch batches, of the integer type that
it gives, to a consumer that does nothing with them. `fixed`: all domains at equal weights (Ray's and Grain's mixes
refuse a weight of zero, so nobody has one). `changing`: another four domains with other weights in every step. Each
cell runs in a process of its own, one after the other, and all cells of a round before the next round: so a slower
hour is everyone's. What fails, takes too long or too much memory is shown as such.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from flows.local_stack import processes
from pipeline.cores import available_cores
from storage_schema.layout import home
from tests.benchmarks.memory import Sampler
from tests.benchmarks.peers.harness import MODES, B, make_tokens

MARK = "SOE_PEERS_CELL"
PREPARE_LIMIT, PATIENCE = 1800, 20
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "LITDATA_DISABLE_VERSION_CHECK": "1",
    "DO_NOT_TRACK": "1",
}
"""Nothing reaches a network, and nothing is reported to anyone."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A line of the table."""

    name: str
    module: str
    variant: str = ""
    ours: bool = False


ENTRIES = (
    Entry(name="ours, in process", module="ours", variant="in_process", ours=True),
    Entry(name="ours, through Ray", module="ours", variant="through_ray", ours=True),
    Entry(name="PyTorch DataLoader", module="torch_loader"),
    Entry(name="Grain select", module="grain_mix", variant="select"),
    Entry(name="Grain mix", module="grain_mix", variant="mix"),
    Entry(name="HF interleave", module="hf_interleave"),
    Entry(name="MosaicML Streaming", module="mosaic"),
    Entry(name="LitData combined", module="litdata_combined"),
    Entry(name="Ray Data mix", module="ray_mix"),
)


def run_cell(entry: Entry, arguments: list[str], options: argparse.Namespace, limit: float) -> dict:
    """What the contestant's process printed, or why there is nothing."""
    python = sys.executable if entry.ours else options.peers_python
    mark = f"{MARK}={uuid.uuid4().hex}"
    command = [python, "-m", f"tests.benchmarks.peers.{entry.module}", "--variant", entry.variant, *arguments]
    environment = os.environ | QUIET | dict([mark.split("=")]) | {"HF_HOME": str(options.data / "hf-home")}
    log, begun, peak, reason = options.data / "cell.log", time.monotonic(), 0, None
    with open(log, "wb") as output, Sampler(mark) as memory:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        patience = None
        while process.poll() is None and reason is None:
            time.sleep(0.2)
            now, peak = time.monotonic(), max(peak, memory.take()["proportional"])
            if patience is None and _result(log) is not None:
                patience = now + PATIENCE  # the result is out: what lingers is ended, not blamed
            if patience is not None:
                if now > patience:
                    break
            elif now - begun > limit:
                reason = f"killed after {limit:.0f} s"
            elif peak > options.memory * 1e9:
                reason = f"killed at {peak / 1e9:.1f} GB of memory"
        processes.stop(lambda: processes.carrying(mark), patience=0 if reason else 10)
        process.wait()
    result = _result(log)
    if reason is None and result is None:
        reason = f"ended with {process.returncode}: {_last_words(log)}"
    return (result or {}) | {"peak_bytes": peak} | ({"error": reason} if reason else {})


def _result(log: Path) -> dict | None:
    for line in reversed(log.read_text(errors="replace").splitlines()):
        if line.startswith('{"version"'):
            try:
                return json.loads(line)
            except ValueError:  # half a line so far
                return None
    return None


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "nothing was printed"


def compare_at(domains: int, options: argparse.Namespace) -> list[dict]:
    """All cells of one K: rows of contestant, mode and their runs."""
    folder = options.data / str(domains)
    folder.mkdir(parents=True, exist_ok=True)
    # A domain holds at least one step's sequences, so that a library that reads each row once can fill a step.
    windows = max(options.windows // domains, B)
    if not (folder / "tokens.npy").exists():
        make_tokens(folder / "unfinished.npy", domains, windows)
        (folder / "unfinished.npy").rename(folder / "tokens.npy")
    common = ["--data", str(folder), "--domains", str(domains)]
    rows, failed = {}, {}
    for entry in options.entries:
        prepared = run_cell(entry, [*common, "--prepare"], options, PREPARE_LIMIT)
        if "error" in prepared:
            failed[entry.name] = f"preparing: {prepared['error']}"
        print(
            f"  K = {domains}: data for {entry.name} ({prepared.get('prepare_seconds', 0):.0f} s)", flush=True
        )
    for turn in range(options.runs):
        for mode in options.modes:
            for entry in options.entries:
                row = rows.setdefault(
                    (entry.name, mode),
                    {"name": entry.name, "domains": domains, "windows": windows, "mode": mode, "runs": []},
                )
                if entry.name in failed:
                    row["error"] = failed[entry.name]
                if "error" in row or "cannot" in row:
                    continue  # it would fail again, and take the time limit to
                arguments = [*common, "--mode", mode, "--seed", str(turn)]
                arguments += ["--steps", str(options.steps), "--seconds", str(options.seconds)]
                result = run_cell(entry, arguments, options, options.limit)
                row |= {key: result[key] for key in ("version", "how", "error", "cannot") if key in result}
                row["runs"].append(result)
                rows[entry.name, mode] = row
                print(f"  K = {domains}, round {turn + 1}: {mode:8} {entry.name:20} {_cell(row)}", flush=True)
    if not options.keep:
        shutil.rmtree(folder)
    return list(rows.values())


def median(row: dict, key: str) -> float | None:
    """Over the runs that measured it."""
    values = [run[key] for run in row["runs"] if run.get(key) is not None]
    return statistics.median(values) if values else None


def _cell(row: dict) -> str:
    if "error" in row or "cannot" in row:
        return "failed" if "error" in row else "cannot"
    return f"{median(row, 'second_half_steps_per_second'):.4g}"


def print_table(rows: list[dict]) -> None:
    """A line for each contestant and K."""
    print(
        f"\n{'peer':20} {'version':12} {'K':>5} {'fixed steps/s':>13} {'changing steps/s':>16} "
        f"{'first batch s':>14}  note"
    )
    for fixed, changing in _paired(rows):
        first = [median(row, "first_batch_seconds") if row else None for row in (fixed, changing)]
        notes = [
            f"{row['mode']}: {row.get('error') or row['cannot']}"
            for row in (fixed, changing)
            if row and ("error" in row or "cannot" in row)
        ]
        either = fixed or changing
        print(
            f"{either['name']:20} {either.get('version', '?'):12} {either['domains']:5} "
            f"{_cell(fixed) if fixed else '-':>13} {_cell(changing) if changing else '-':>16} "
            f"{' / '.join('-' if s is None else f'{s:.2f}' for s in first):>14}  "
            f"{'; '.join(notes) or either.get('how', '')}"
        )
    print(
        "steps/s: in the second half of the steps. first batch: fixed / changing, from opening the data on;"
    )
    print("a session of Ray is there already")


def _paired(rows: list[dict]) -> list[tuple[dict | None, dict | None]]:
    pairs: dict[tuple, dict] = {}
    for row in rows:
        pairs.setdefault((row["domains"], row["name"]), {})[row["mode"]] = row
    return [tuple(pair.get(mode) for mode in MODES) for pair in pairs.values()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--domains", type=int, nargs="+", default=[64, 1024, 4096])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument(
        "--only", nargs="+", choices=[entry.name for entry in ENTRIES], help="some contestants"
    )
    parser.add_argument("--windows", type=int, default=131_072, help="of all domains together, at least")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40_000, help="of a cell, at most")
    parser.add_argument(
        "--seconds", type=float, default=12, help="of a cell, at most, from its first batch on"
    )
    parser.add_argument("--limit", type=float, default=120, help="seconds that a cell may take in all")
    parser.add_argument("--memory", type=float, default=8, help="GB that a cell's processes may take")
    parser.add_argument("--peers-python", default=".venv-peers/bin/python")
    parser.add_argument("--data", type=Path, default=home() / "benchmarks" / "peers")
    parser.add_argument("--keep", action="store_true", help="keep the data for another time")
    parser.add_argument("--json", help="write the result there")
    options = parser.parse_args()
    options.entries = [entry for entry in ENTRIES if not options.only or entry.name in options.only]
    options.data = options.data.resolve()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # some keep a file of every domain open
    rows = [row for domains in options.domains for row in compare_at(domains, options)]
    print_table(rows)
    if options.json:
        body = {
            "settings": {
                key: getattr(options, key)
                for key in ("runs", "steps", "seconds", "limit", "memory", "windows")
            },
            "cores": available_cores(),
            "machine": platform.processor() or platform.machine(),
            "rows": rows,
        }
        Path(options.json).write_text(json.dumps(body, indent=1) + "\n")


if __name__ == "__main__":
    main()
