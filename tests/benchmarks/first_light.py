"""Is the soup worth it? The demonstration's soup and its generic twin, over several seeds.

    python -m tests.benchmarks.first_light --store demo --seeds 0 1 2 --json result.json
    python -m tests.benchmarks.first_light --soup '{"by_size": true, "support_size": 4}' --json other.json
    python -m tests.benchmarks.first_light --methods generic --config '{"learning_rate": 2e-3}' --json b.json
    python -m tests.benchmarks.first_light --far /data/texts --json result.json

Needs a store with held-out sources (``soe demo`` leaves one); each file of the folder `--far` is a set as well. Trains
in process, on the batches Ray would give, and measures at the end (with `--points` also on the way): specialists by
`refined` (the default), `blended` and Algorithm 3, and the soup's generic instance, on text that neither trained a
model nor chose domain weights. In nats per token. Runs that the JSON file has already are not made again.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flows.cli import demo
from flows.settings import Pretrain
from flows.training import resolve_run as run_plan
from pipeline.cores import compute_on
from soe_model.specialists.refining import REFINED
from soe_model.training.trainer import SoupTrainer
from storage_schema.domains import DomainStore
from storage_schema.layout import store_folder
from storage_schema.manifest import write_atomically
from tests.benchmarks.worth.sets import METHODS, Sets, load_sets, losses

MEASURED = (REFINED, *METHODS)
MOST_SETS = 60
"""As the demonstration: all sources that have enough text."""


def demonstrated() -> dict[str, Any]:
    """The settings that the demonstration's soup has and its twin has not."""
    soup, twin = (step.config for step in demo.steps() if step.deployment == "pretrain-soe")
    return {key: value for key, value in soup.items() if key not in twin}


def train(settings: Pretrain, store: DomainStore, sets: Sets, points: int = 1) -> dict[str, Any]:
    """One run, measured at so many equal distances: ``curve``, whose last point is also ``losses``."""
    compute_on(torch.get_num_threads())
    run = run_plan.resolve(settings, store)
    training = run.training
    stream = run_plan.make_stream(settings, store, training)
    trainer = SoupTrainer(
        run.soup,
        training,
        centroids_KD=torch.from_numpy(store.tree.leaves_KD),
        generic_K=torch.from_numpy(sets.generic_K).float(),
    )
    seconds, curve, every = 0.0, [], -(-training.steps // points)
    for batch in stream.in_process(0, training.steps):
        begun = time.monotonic()
        result = trainer.train_step(
            torch.from_numpy(batch.tokens_BL1.astype(np.int64)),
            torch.from_numpy(batch.mixture_B),
            torch.from_numpy(batch.domain_weights_WK),
        )
        seconds += time.monotonic() - begun
        if trainer.step % every == 0 or trainer.step == training.steps:
            curve.append({"step": trainer.step, "seconds": seconds, "losses": measured(trainer, sets)})
        if trainer.step % 100 == 0:
            print(
                f"{settings.method} seed {settings.seed}: step {trainer.step}, loss {result.loss:.3f}",
                flush=True,
            )
    tokens = training.steps * training.batch_size * training.sequence_length
    found = {"method": settings.method, "seed": settings.seed, "tokens": tokens, "seconds": seconds}
    return found | {"losses": curve[-1]["losses"], "curve": curve}


def measured(trainer: SoupTrainer, sets: Sets) -> dict[str, dict[str, Any]]:
    """Set → the mean loss by each of MEASURED, and what was chosen."""
    return {
        name: {method: float(np.mean(row[method])) for method in MEASURED}
        | {key: row.get(key) for key in ("share", "steps")}
        for name, row in losses(trainer, sets, refined=True).items()
    }


def say(runs: list[dict[str, Any]], parts: dict[str, str]) -> None:
    """Each seed's soup minus its twin, by kind of set; their mean and spread; and specialists beside generic."""
    by = {(run["method"], run["seed"]): run["losses"] for run in runs}
    seeds = sorted({seed for _, seed in by if all((method, seed) in by for method in ("soup", "generic"))})
    if not seeds:
        return
    for part in dict.fromkeys(parts.values()):
        names = [name for name, its in parts.items() if its == part]

        def mean(which: str, method: str, names: list[str] = names) -> np.ndarray:
            return np.array([np.mean([by[which, seed][name][method] for name in names]) for seed in seeds])

        twin = mean("generic", "generic")
        print(f"{len(names)} {part}: twin {_spread(twin)}")
        for method in MEASURED:
            difference = mean("soup", method) - twin
            print(
                f"  {method}: {_spread(mean('soup', method))}, minus twin {_spread(difference)}: {difference.round(3)}"
            )
        over = [
            by["soup", seed][name][REFINED] - by["soup", seed][name]["generic"]
            for seed in seeds
            for name in names
        ]
        print(
            f"  {REFINED} minus its own generic instance: mean {np.mean(over):+.4f}, worst {max(over):+.4f}"
        )


def _spread(values: np.ndarray) -> str:
    return f"{values.mean():.4f} ± {values.std(ddof=1) if len(values) > 1 else 0:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", default="demo")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=["generic", "soup"], default=["generic", "soup"])
    parser.add_argument("--config", type=json.loads, default={}, help="further settings of both, as JSON")
    parser.add_argument(
        "--soup",
        type=json.loads,
        default=demonstrated(),
        help="further settings of the soup, which win over --config; by default the demonstration's, %(default)s. "
        "Records before 2026-11-30 name theirs; where they name none, give '{}'.",
    )
    parser.add_argument("--far", help="a folder; each of its files is one more set")
    parser.add_argument("--points", type=int, default=1, help="how often each run is measured")
    parser.add_argument("--json", required=True, help="the result, written after each run")
    options = parser.parse_args()
    store = DomainStore(store_folder(options.store))
    shared = dict(store=options.store, preset=options.preset, **options.config)
    files = sorted(Path(options.far).iterdir()) if options.far else []
    far = {path.name.partition(".")[0]: str(path) for path in files}
    length = run_plan.resolve(Pretrain(**shared), store).training.sequence_length
    sets = load_sets(options.store, length, most=MOST_SETS, texts=far)
    result = {
        "preset": options.preset,
        "config": options.config,
        "soup": options.soup,
        "store": store.digest,
        "parts": sets.parts,
        "methods": list(MEASURED),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "runs": [],
    }
    path = Path(options.json)
    if path.exists():
        before = json.loads(path.read_text("utf-8"))
        same = "preset", "config", "soup", "store", "parts", "methods"
        if any(before.get(name) != result[name] for name in same):
            raise SystemExit(f"{path} holds runs of other settings: give another file.")
        result["runs"] = before["runs"]
    for seed in options.seeds:
        for method in options.methods:
            if any((run["method"], run["seed"]) == (method, seed) for run in result["runs"]):
                continue
            more = options.soup if method == "soup" else {}
            settings = Pretrain(method=method, seed=seed, **(shared | more))
            result["runs"].append(train(settings, store, sets, options.points))
            write_atomically(path, json.dumps(result, indent=1).encode())
    say(result["runs"], sets.parts)


if __name__ == "__main__":
    main()
