"""What a run's settings come to: the soup, its training, and the stream of mixtures that it reads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

from flows.settings import Pretrain
from flows.training.custom_backbone import custom_backbone
from flows.training.laws import meta_distribution
from flows.training.run_record import claimed
from pipeline.mixtures.plan import MixturePlan
from pipeline.remote.store import open_store
from pipeline.stream.batches import MixtureStream
from soe_model.planning.model_size import model_size
from soe_model.planning.setup import Setup
from soe_model.presets import Preset, SoupConfig, TrainingConfig, preset
from storage_schema.domains import DomainStore
from storage_schema.errors import UserError
from storage_schema.layout import run_folder, store_place
from storage_schema.manifest import StoreError

SETTINGS = "settings.json"
"""In a run's folder: what it was asked for."""
AT_START = "router_hidden", "router_input_scale", "router_output_scale", "expert_std"
"""A preset's numbers of how router and experts begin."""


class Vocabulary(Protocol):
    """What a run's settings are resolved for: a store, or one that is only planned."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def num_domains(self) -> int: ...
    @property
    def end_of_text(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class ResolvedRun:
    """What a run's settings come to."""

    soup: SoupConfig
    training: TrainingConfig
    world_sizes: list[int]
    """Numbers of workers that it may have, ascending; the last is num_workers."""

    def setup(self, num_workers: int, device_type: str) -> Setup:
        """The run as it is priced, on so many workers of ``cuda`` or ``cpu``."""
        return Setup(
            size=model_size(self.soup.backbone),
            soup=self.soup,
            training=self.training,
            num_workers=num_workers,
            device_type=device_type,
        )


def resolve(settings: Pretrain, store: Vocabulary) -> ResolvedRun:
    """What the settings come to on `store`: for ``soe plan``, for the check before a run and for the run alike.

    Raises ValueError for an unknown preset or optimizer, a backbone that does not fit the store, and a batch that the
    workers cannot share evenly.
    """
    soup, training = _configs(settings, store)
    sizes = world_sizes(training.batch_size, settings.least_workers, settings.num_workers)
    return ResolvedRun(soup=soup, training=training, world_sizes=sizes)


def _configs(settings: Pretrain, store: Vocabulary) -> tuple[SoupConfig, TrainingConfig]:
    """The preset with the user's settings laid over it, for the vocabulary of `store`."""
    chosen: Preset = preset(settings.preset)
    overrides = _given(
        settings,
        "steps", "batch_size", "sequence_length", "mixtures_per_step", "support_size", "learning_rate",
        "expert_learning_rate", "router_learning_rate", "warmup_steps", "final_learning_rate_fraction",
        "gradient_clip", "optimizer", "micro_batch_size", "compile_model", "deterministic", "train_generic",
    )  # fmt: skip
    num_experts = settings.num_experts or chosen.num_experts
    if settings.method == "generic":
        if settings.train_generic:
            raise UserError("train_generic is for soups: method=generic trains nothing else. Leave it out.")
        num_experts = 0
        overrides["mixtures_per_step"] = 1
        overrides.setdefault("learning_rate", chosen.generic_learning_rate)
    adam = replace(chosen.training.adam, **_given(settings, "beta1", "beta2", "epsilon"))
    training = replace(chosen.training, seed=settings.seed, adam=adam, **overrides)
    of_store = {
        "vocab_size": store.vocab_size,
        "sequence_length": training.sequence_length,
        "end_of_text": store.end_of_text,
    }
    given = settings.backbone
    backbone = chosen.backbone(**of_store) if given is None else custom_backbone(given, **of_store)
    at_start = {name: getattr(chosen, name) for name in AT_START}
    at_start["router_output_scale"] = chosen.output_scale(num_experts)
    at_start |= _given(settings, *AT_START)
    soup = SoupConfig(
        backbone=backbone,
        num_experts=num_experts,
        num_domains=store.num_domains,
        expert_rank=settings.expert_rank if num_experts else None,
        **at_start,
    )
    return soup, training


def _given(settings: Pretrain, *names: str) -> dict[str, Any]:
    """Of these settings those that the user gave."""
    return {name: value for name in names if (value := getattr(settings, name)) is not None}


def world_sizes(batch_size: int, min_workers: int, num_workers: int) -> list[int]:
    """Numbers of workers from `min_workers` on that share a batch evenly, ascending.

    Raises ValueError if `num_workers` does not, or is below `min_workers`.
    """
    if min_workers > num_workers:
        raise UserError(
            f"min_workers is {min_workers} and num_workers, the maximum, is {num_workers}. Lower min_workers or "
            "raise num_workers."
        )
    if batch_size % num_workers:
        raise UserError(
            f"batch_size {batch_size} is not a multiple of the {num_workers} workers. Change batch_size or num_workers."
        )
    return [size for size in range(min_workers, num_workers + 1) if batch_size % size == 0]


def make_stream(settings: Pretrain, store: DomainStore, training: TrainingConfig) -> MixtureStream:
    """The run's plan over the store's domains, as a stream."""
    plan = MixturePlan(
        store.windows_K(training.sequence_length),
        meta_distribution(settings, training, store),
        seed=settings.seed,
        batch_size=training.batch_size,
        mixtures_per_step=training.mixtures_per_step,
        store_digest=store.digest,
        sequence_length=training.sequence_length,
    )
    stream = MixtureStream(
        store_folder=store_place(settings.store),
        sequence_length=training.sequence_length,
        plan=plan,
        store_parts=len(store.volumes),
        window_steps=settings.window_steps,
    )
    return stream.for_rank(0, settings.num_workers)


def stream_of_run(name: str) -> tuple[MixtureStream, int]:
    """The stream that the run of that name reads, and its steps.

    Raises:
        ValueError: there is no such run, or its store is no longer the one it began with.
    """
    folder = run_folder(name)
    if not (folder / SETTINGS).exists():
        raise UserError(
            f"there is no run {name!r}: {folder / SETTINGS} is missing. Check the name (SOE_HOME)."
        )
    begun = claimed(folder)  # first: a newer release's settings are not ours to check
    recorded = Pretrain.model_validate_json((folder / SETTINGS).read_text("utf-8"))
    settings = Pretrain(**recorded.model_dump(exclude_defaults=True))  # the file names all, given or not
    store = open_store(store_place(settings.store), num_volumes=begun["store_parts"])
    # A run of an older release may have a warm-up that is refused today; its stream does not hang on that.
    training = _configs(settings.model_copy(update={"warmup_steps": 0}), store)[1]
    stream = make_stream(settings, store, training)
    changed = [key for key, value in stream.plan.facts.items() if begun[key] != value]
    if changed:
        raise StoreError(f"the plan of run {name!r} can no longer be made: {', '.join(changed)} differ.")
    return stream, begun["steps"]
