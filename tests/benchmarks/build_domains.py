"""One real build-domains run: seconds and peak memory of each stage.

    python -m tests.benchmarks.build_domains --passages 100000 --json result.json

The job itself, in a process and a Ray session of its own, on the environment corpus: real text, the real
encoder, 64 x 64 domains. Memory is that of all processes of the job (``memory.py``). The store stays under
SOE_HOME, so that it can be audited and looked at.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

from flows.settings import BuildDomains
from pipeline.cores import available_cores
from storage_schema.layout import store_folder
from tests.benchmarks.memory import Sampler

MARK = "SOE_BENCHMARK_OF_BUILD_DOMAINS"
FINISHED = re.compile(r"(\w+): finished (already, skipped|in [0-9.]+ s)")


def build(settings: BuildDomains) -> dict:
    """Run the job; of each stage its seconds, peaks and counts, and the wall time of all."""
    command = [sys.executable, "-m", "flows.jobs.build_domains", "--config", settings.model_dump_json()]
    stages, begun = {}, time.monotonic()
    with (
        Sampler(f"{MARK}={os.getpid()}") as sampler,
        subprocess.Popen(
            command, env=os.environ | {MARK: str(os.getpid())}, stdout=subprocess.PIPE, text=True
        ) as job,
    ):
        for line in job.stdout:
            if finished := FINISHED.match(line):
                if "skipped" in line:
                    raise SystemExit(f"{line.strip()}: measure a store that is not there yet (--store).")
                stages[finished[1]] = {"peaks": sampler.take()}
                print(line.rstrip(), flush=True)
            elif line.startswith("soe-summary "):
                summary = json.loads(line.removeprefix("soe-summary "))
    if job.returncode:
        raise SystemExit(f"the job ended with code {job.returncode}: {line.rstrip()}")
    for name, row in stages.items():
        row |= {key: summary["stages"][name][key] for key in ("seconds", "counts")}
    stages["atlas"] = {"peaks": sampler.take()}
    return {"seconds": time.monotonic() - begun, "stages": stages}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--passage-characters", type=int, default=256)
    parser.add_argument("--max-seq-length", type=int, default=64)
    parser.add_argument("--store", default="benchmark")
    parser.add_argument("--json", help="write the result there")
    options = parser.parse_args()
    settings = BuildDomains(
        store=options.store,
        max_passages=options.passages,
        passage_characters=options.passage_characters,
        max_seq_length=options.max_seq_length,
    )
    result = build(settings)
    for name, row in result["stages"].items():
        peaks = ", ".join(f"{kind} {peak / 1e6:.0f} MB" for kind, peak in row["peaks"].items())
        print(f"{name:10} {row.get('seconds', float('nan')):8.1f} s  peak memory {peaks}")
    print(f"all: {result['seconds']:.0f} s; the store is {store_folder(options.store)}")
    if options.json:
        chosen = settings.model_dump(exclude={"store"}, exclude_defaults=True)
        body = {"settings": chosen, **result, "machine": f"{platform.machine()}, {available_cores()} cores"}
        Path(options.json).write_text(json.dumps(body, indent=1))


if __name__ == "__main__":
    main()
