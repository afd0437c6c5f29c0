"""The bank's passes against the bytes they must move, and a soup's step beside the plain one.

    python -m tests.benchmarks.bank --json result.json
    make bench-gpu          the paper's shape on a GPU, a slice of the bank first

`passes`: combine, gradient of the coefficients and update of an [N, P] bank alone; the bound is the bytes that the
optimizer says it moves (`moved_bytes`) at the rate of a copy measured in the same round. `steps`: whole steps of the
same backbone and batch, the generic twin's beside the soup's, one after the other in each round.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from soe_model.optimizers import OPTIMIZERS, AdamConfig, bytes_of
from soe_model.presets import SoupConfig, TrainingConfig, preset
from soe_model.training.trainer import SoupTrainer
from tests.benchmarks.bank_scaling import add_scaling


def seconds(work: Callable[[], None], device: str, *, repeat: int) -> float:
    """The least of `repeat` runs, after one that is not counted (it compiles)."""
    taken = []
    for _ in range(repeat + 1):
        synchronize(device)
        begun = time.perf_counter()
        work()
        synchronize(device)
        taken.append(time.perf_counter() - begun)
    return min(taken[1:])


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def copy_bandwidth(elements: int, device: str, repeat: int) -> float:
    """Bytes a second of a plain copy, read and written both counted."""
    source, target = torch.zeros(elements, device=device), torch.zeros(elements, device=device)
    return 8 * elements / seconds(lambda: target.copy_(source), device, repeat=repeat)


def passes(optimizer: str, options: argparse.Namespace) -> dict:
    """Seconds of each pass over the bank, and the share of the copy's rate that the whole reaches: the round of the
    median share, each with a copy of its own, because a machine's memory drifts.
    """
    n, p, w, device = options.experts, options.params // 1024 * 1024, options.mixtures, options.device
    generator = torch.Generator().manual_seed(0)
    coefficients_WN = torch.randn(w, n, generator=generator).to(device)
    shared_p, grads_Wp = torch.zeros(p, device=device), 1e-3 * torch.ones(w, p, device=device)
    out_Wp = torch.empty(w, p, device=device)
    experts = OPTIMIZERS[optimizer]((n, p), config=AdamConfig(), seed=0, device=device)
    rate = {"step": 3, "learning_rate": 1e-4}
    taken = {
        "combine": lambda: experts.combine(shared_p, coefficients_WN, out_Wp),
        "coefficient_gradients": lambda: experts.coefficient_gradients(grads_Wp),
        "update": lambda: experts.update(coefficients_WN, grads_Wp, **rate),
    }
    moved = bytes_of(optimizer)[1]
    rounds = []
    for _ in range(options.rounds):
        bandwidth = copy_bandwidth(min(n * p, 1 << 28), device, options.repeat)
        each = {name: seconds(work, device, repeat=options.repeat) for name, work in taken.items()}
        total = sum(each.values())
        rounds.append(
            {"seconds": each, "copy_bytes_per_second": bandwidth, "share": moved * n * p / bandwidth / total}
        )
    middle = sorted(rounds, key=lambda row: row["share"])[len(rounds) // 2]
    total = sum(middle["seconds"].values())
    return {
        "optimizer": optimizer, "experts": n, "params": p, "mixtures": w, "seconds": middle["seconds"], "total": total,
        "copy_bytes_per_second": middle["copy_bytes_per_second"], "bound_bytes_per_element": moved,
        "bytes_per_element_at_copy_rate": total * middle["copy_bytes_per_second"] / (n * p),
        "share_of_bound": middle["share"], "rounds": rounds,
    }  # fmt: skip


def make_trainer(num_experts: int, options: argparse.Namespace, **training) -> SoupTrainer:
    """A trainer of the benchmark's backbone."""
    chosen = preset(options.preset)
    backbone = chosen.backbone(vocab_size=options.vocabulary, sequence_length=options.length, end_of_text=0)
    soup = SoupConfig(backbone=backbone, num_experts=num_experts, num_domains=options.domains)
    settings = {
        "steps": 1000, "warmup_steps": 0, "batch_size": options.batch, "sequence_length": options.length,
        "mixtures_per_step": 1, "micro_batch_size": options.micro_batch, "compile_model": options.compile,
    }  # fmt: skip
    return SoupTrainer(soup, TrainingConfig(**settings | training), device=options.device)


def step_of(trainer: SoupTrainer, *, rank: int = 0, ranks: int = 1) -> Callable[[], None]:
    """One step on this rank's share of random tokens."""
    training, soup, device = trainer.training, trainer.soup, trainer.device
    generator = torch.Generator().manual_seed(0)
    shape = (training.batch_size, training.sequence_length + 1)
    tokens = torch.randint(soup.backbone["vocab_size"], shape, generator=generator).to(device)
    mixture = torch.arange(training.batch_size, device=device) * training.mixtures_per_step // len(tokens)
    weights = torch.rand(training.mixtures_per_step, soup.num_domains, generator=generator).to(device)
    weights = weights / weights.sum(1, keepdim=True)
    share = slice(rank * len(tokens) // ranks, (rank + 1) * len(tokens) // ranks)
    return lambda: trainer.train_step(tokens[share], mixture[share], weights)


def steps(optimizer: str, options: argparse.Namespace) -> dict:
    """Seconds of a plain and a soup step, in turn; the medians of the rounds."""
    of_soup = {"mixtures_per_step": options.mixtures, "optimizer": optimizer}
    works = {
        "plain": step_of(make_trainer(0, options)),
        "soup": step_of(make_trainer(options.experts, options, **of_soup)),
    }
    taken = {name: [seconds(work, options.device, repeat=1)] for name, work in works.items()}
    for _ in range(options.rounds):
        for name, work in works.items():
            taken[name].append(seconds(work, options.device, repeat=options.repeat))
    rounds = [plain / soup for plain, soup in zip(taken["plain"][1:], taken["soup"][1:], strict=True)]
    plain, soup = (statistics.median(taken[name][1:]) for name in works)
    tokens = options.batch * options.length
    return {
        "preset": options.preset, "optimizer": optimizer, "experts": options.experts, "mixtures": options.mixtures,
        "plain_seconds": plain, "soup_seconds": soup, "plain_tokens_per_second": tokens / plain,
        "soup_over_plain_throughput": statistics.median(rounds), "rounds": rounds,
    }  # fmt: skip


def print_result(result: dict) -> None:
    print(f"\nBank {result['settings']['experts']} x {result['settings']['params']:,}, {result['machine']}")
    for row in result["passes"]:
        each = "  ".join(f"{name} {1e3 * value:.1f} ms" for name, value in row["seconds"].items())
        print(
            f"  {row['optimizer']:18} {each}  copy {row['copy_bytes_per_second'] / 1e9:.1f} GB/s  "
            f"{row['bytes_per_element_at_copy_rate']:.1f} B/element of {row['bound_bytes_per_element']:.1f}  "
            f"{row['share_of_bound']:.0%} of the bound "
            f"({min(r['share'] for r in row['rounds']):.0%} to {max(r['share'] for r in row['rounds']):.0%})"
        )
    for row in result["steps"]:
        print(
            f"  step of {row['preset']}, {row['optimizer']}, W = {row['mixtures']}: plain {row['plain_seconds']:.3f} s "
            f"({row['plain_tokens_per_second']:,.0f} tokens/s), soup {row['soup_seconds']:.3f} s, throughput "
            f"{row['soup_over_plain_throughput']:.3f} of plain"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--experts", type=int, default=16, help="N")
    parser.add_argument("--params", type=int, default=10_500_000, help="P of the passes")
    parser.add_argument("--mixtures", type=int, default=1, help="W")
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--preset", default="small", help="backbone of the steps")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--domains", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=16, help="sequences per step")
    parser.add_argument("--micro-batch", type=int, default=None)
    parser.add_argument("--length", type=int, default=128, help="tokens in a sequence")
    parser.add_argument("--compile", action="store_true", help="compile the backbone of both")
    parser.add_argument("--repeat", type=int, default=3, help="the least of so many, in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("passes", "steps", "scaling"), help="one part")
    parser.add_argument("--plot", type=Path, help="scaling: write a picture there")
    parser.add_argument("--json", type=Path, help="write the result there")
    options = parser.parse_args()
    result = {
        "settings": {name: value for name, value in vars(options).items() if name not in ("json", "plot")},
        "machine": torch.cuda.get_device_name() if options.device != "cpu" else platform.processor() or "CPU",
        "threads": torch.get_num_threads(), "torch": torch.__version__, "passes": [], "steps": [],
    }  # fmt: skip
    for optimizer in options.optimizers:
        if options.only in (None, "passes"):
            result["passes"].append(passes(optimizer, options))
        if options.only in (None, "steps"):
            result["steps"].append(steps(optimizer, options))
    print_result(result)
    if options.only == "scaling":
        result["scaling"] = add_scaling(options)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
