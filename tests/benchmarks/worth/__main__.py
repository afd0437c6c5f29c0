"""What a soup is worth: a corpus of 290 MB, its domains, soups and twins of some million parameters.

    python -m tests.benchmarks.worth prepare --folder FOLDER      # packages → corpus; minutes
    python -m tests.benchmarks.worth build --folder FOLDER        # corpus → domains; an hour or two on two cores
    python -m tests.benchmarks.worth train --folder FOLDER --name twin-0 --config '{"method": "generic"}' --minutes 120
    python -m tests.benchmarks.worth train --folder FOLDER --name soup-0 --minutes 120
    python -m tests.benchmarks.worth train --folder FOLDER --name perl-0 --crisp perl --minutes 120
    python -m tests.benchmarks.worth report --folder FOLDER       # table and chart of the runs that are there
    python -m tests.benchmarks.worth package --folder FOLDER      # for a GPU: see packaged_training.py

Each step goes on where it was cut off. The store is FOLDER/soe/stores/worth, so afterwards every command of the product
works on it with SOE_HOME=FOLDER/soe.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from flows.settings import BuildDomains, Pretrain
from tests.benchmarks.worth.corpus import prepare
from tests.benchmarks.worth.crisp import crisp_settings
from tests.benchmarks.worth.kinds import FAR, NEAR
from tests.benchmarks.worth.package import write_package
from tests.benchmarks.worth.report import report
from tests.benchmarks.worth.sets import load_sets
from tests.benchmarks.worth.training import train

TRAINING = {"store": "worth", "preset": "small", "batch_size": 32, "sequence_length": 256, "steps": 2000}
"""1.9 million parameters with a vocabulary of 8192 tokens; 16 million tokens, hours on 2 cores."""
PACKAGED_LENGTH = 512
"""Tokens in a window of the package."""


def build_settings(folder: Path) -> BuildDomains:
    """32 x 32 domains: of 191,150 passages each has 187 on average. 64 x 64 would leave it 47."""
    return BuildDomains(
        store="worth",
        corpus=str(folder / "corpus"),
        held_out_sources=[*NEAR, *FAR],
        max_bad_documents=0,
        vocab_size=8192,
        tokenizer_sample_characters=50_000_000,
        max_seq_length=64,
        coarse_clusters=32,
        leaf_clusters=32,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=("prepare", "build", "train", "report", "package"))
    parser.add_argument("--folder", type=Path, required=True, help="holds everything; a few gigabytes")
    parser.add_argument("--name", help="train: of the run; the same name goes on")
    parser.add_argument(
        "--config", type=json.loads, default={}, help="train: settings of pretrain-soe, as JSON"
    )
    parser.add_argument("--crisp", metavar="SET", help="train: on this set's own mixture alone, or `uniform`")
    parser.add_argument("--points", type=int, default=6, help="train: how often losses are measured")
    parser.add_argument(
        "--minutes", type=float, default=120, help="train: stop after so long, to go on later"
    )
    options = parser.parse_args()
    folder = options.folder.resolve()
    if options.step == "prepare":
        prepare(folder)
        return
    if options.step == "report":
        report(folder)
        print((folder / "report.md").read_text())
        return
    os.environ["SOE_HOME"] = str(folder / "soe")
    if options.step == "package":
        print(json.dumps(write_package("worth", folder / "package", PACKAGED_LENGTH), indent=1))
        return
    if options.step == "train":
        asked = TRAINING | {"name": options.name or "soup"} | options.config
        if options.crisp:
            sets = load_sets("worth", Pretrain(**asked).sequence_length)
            asked |= crisp_settings(options.crisp, sets, folder / "mixtures")
        settings = Pretrain(**asked)
        train(settings, folder / "runs" / settings.name, options.points, time.time() + 60 * options.minutes)
        return
    domains = build_settings(folder).model_dump_json(exclude_defaults=True)
    command = [sys.executable, "-m", "flows.jobs.build_domains", "--config", domains]
    sys.exit(subprocess.run(command).returncode)


if __name__ == "__main__":
    main()
