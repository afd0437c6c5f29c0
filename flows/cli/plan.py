"""``soe plan``: what a pretraining run will need and take, before it starts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console
from rich.table import Table

from flows.machine_memory import available_memory
from flows.settings import Pretrain
from flows.training.fit_check import CPU
from flows.training.resolve_run import resolve
from soe_model.planning.devices import DEVICES, Device
from soe_model.planning.devices import device as find_device
from soe_model.planning.memory_check import GB, needed, refuse_what_cannot_fit
from soe_model.planning.setup import Setup
from soe_model.planning.state_size import checkpoint_bytes, state_bytes
from soe_model.planning.step_time import step_flops, step_time
from soe_model.planning.worker_memory import worker_memory
from storage_schema.errors import UserError
from storage_schema.json_files import read_object


def main(
    settings: Pretrain,
    store: PlannedStore,
    *,
    device: str = CPU,
    bandwidth: float | None = None,
    peak: float | None = None,
    mfu: float | None = None,
) -> int:
    """Print the plan; returns 0. Raises ValueError for wrong settings and, after the table, for a run that cannot fit.

    Args:
        device: name of a GPU, or `cpu`: this machine.
        bandwidth: that a copy in its memory reaches, GB/s.
        peak: of the device, TFLOP/s.
        mfu: share of the peak that training reaches.
    """
    run = resolve(settings, store)
    chosen = chosen_device(device, bandwidth=bandwidth, peak=peak)
    setup = run.setup(settings.num_workers, CPU if device == CPU else "cuda")
    console = Console(highlight=False, soft_wrap=True)
    show(setup, chosen, console, mfu=mfu)
    workers = setup.num_workers if device == CPU else 1
    refuse_what_cannot_fit(setup, chosen.memory, of=chosen.name, workers_there=workers)
    console.print("It fits.")
    return 0


@dataclass(frozen=True, kw_only=True)
class PlannedStore:
    """What a run must know about its store."""

    vocab_size: int
    num_domains: int
    end_of_text: int = 0


def settings_of(
    given: dict[str, Any],
    *,
    num_experts: int | None,
    backbone: str | None,
    vocab_size: int,
    num_domains: int,
) -> tuple[Pretrain, PlannedStore]:
    """What the command line says, as a run would be given it.

    Args:
        given: settings of the run that stand there.
        num_experts: 0: the generic twin.
        backbone: path of a Hugging Face config.json.
        vocab_size: of the store's tokenizer.
        num_domains: of the store.
    """
    given = dict(given)
    if num_experts == 0:
        given["method"] = "generic"
    elif num_experts is not None:
        given["num_experts"] = num_experts
    if backbone:
        given["backbone"] = _read_backbone(backbone)
        # A published config.json has its own vocabulary; a shorter one gets the store's, as in a run.
        own = given["backbone"].get("vocab_size", vocab_size)
        if not isinstance(own, int):
            raise UserError(f"{backbone}: vocab_size is {own!r}; it must be a whole number.")
        vocab_size = min(vocab_size, own)
    return Pretrain(**given), PlannedStore(vocab_size=vocab_size, num_domains=num_domains)


def _read_backbone(path: str) -> dict[str, Any]:
    try:
        return read_object(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no Hugging Face configuration (config.json): {error}") from error


def chosen_device(name: str, *, bandwidth: float | None, peak: float | None) -> Device:
    """The GPU of that name, or this machine, of which we know only the memory; with the given rates."""
    if name == CPU:
        chosen = Device(
            name="this machine", memory=available_memory(), peak_flops=None, bandwidth=None, mfu=None
        )
    else:
        spelled = {known.lower(): known for known in DEVICES}
        chosen = find_device(spelled.get(name.lower(), name))
    if bandwidth:
        chosen = replace(chosen, bandwidth=bandwidth * 1e9)
    if peak:
        chosen = replace(chosen, peak_flops=peak * 1e12)
    return chosen


def show(setup: Setup, chosen: Device, console: Console, *, mfu: float | None = None) -> None:
    """Print the memory of a worker, part by part, and the disk and time that follow from it."""
    size, soup, training = setup.size, setup.soup, setup.training
    full = soup.num_experts * (setup.factor_size if soup.expert_rank else size.num_params)
    mixtures = f"{training.mixtures_per_step} mixture{'s' * (training.mixtures_per_step > 1)}"
    if training.train_generic:
        mixtures += " and the generic instance"
    console.print(
        f"{size.num_params:,} parameters, {soup.num_experts} experts of together {full:,}; "
        f"{'adam' if soup.expert_rank else training.optimizer}, {setup.num_workers} x {chosen.name}; a step of "
        f"{training.batch_size} x {training.sequence_length} tokens, {mixtures}, "
        f"passes of {setup.micro_batch} sequences"
    )
    table = Table("of the worker that needs most", box=None, pad_edge=False)
    table.add_column("GB", justify="right")
    for name, value in worker_memory(setup).items():
        table.add_row(name + " (estimated)" * (name in ("activations", "process")), f"{value / GB:.2f}")
    copy = "the checkpoint's copy"
    if setup.device_type == CPU:
        table.add_row(copy, f"{state_bytes(setup) / GB:.2f}")
    table.add_row("all", f"{needed(setup) / GB:.2f}")
    table.add_row(f"{chosen.name} has", f"{chosen.memory / GB:.2f}")
    console.print(table)
    if setup.device_type != CPU:
        console.print(f"{copy}: {state_bytes(setup) / GB:.2f} GB of CPU memory per worker")
    console.print(f"a checkpoint on disk: {checkpoint_bytes(setup) / GB:.2f} GB")
    console.print(_time(setup, chosen, mfu))


def _time(setup: Setup, chosen: Device, mfu: float | None) -> str:
    time = step_time(setup, chosen, mfu=mfu)
    share = mfu or chosen.mfu
    parts = []
    if time.backbone is not None:
        flops = f"{step_flops(setup) / 1e12:.1f} TFLOP at {share:.0%} of the peak"
        parts.append(f"{1e3 * time.backbone:.1f} ms of backbone ({flops})")
    if time.bank is not None and chosen.bandwidth:
        rate = f"at {chosen.bandwidth / 1e12:.2f} TB/s"
        parts.append(f"{1e3 * time.bank:.1f} ms of bank ({rate})")
    if time.ratio is not None:
        parts.append(f"{time.ratio:.0%} of the plain model's tokens per second")
    if not parts:
        return "a step: not predicted, because the speed of this is not known (give --bandwidth, --peak and --mfu)"
    return "a step, predicted: " + ", ".join(parts)
