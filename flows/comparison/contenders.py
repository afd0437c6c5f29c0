"""The methods of a comparison, made for one store, seed and budget.

Legend: K domains, D embedding size.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from pydantic import ValidationError

from flows.errors import user_error
from flows.settings import CompareMethods, Pretrain
from flows.training.laws import SETTINGS_OF_LAW, meta_distribution
from flows.training.resolve_run import resolve
from pipeline.mixtures.meta_distributions import window_shares
from pipeline.mixtures.supports import Domains
from soe_model.methods import method as method_named
from soe_model.methods.crisp import Crisp
from soe_model.methods.flat import FlatMethod
from soe_model.methods.groups import GroupedMethod, coarse_groups
from soe_model.presets import SoupConfig, TrainingConfig, preset
from storage_schema.domains import DomainStore
from storage_schema.errors import UserError

SOUP, PARETO = "soup", "pareto"
"""A soup adds up experts, so a model moves further than the preset's rates say. The other methods take the generic
twin's rate, and the Pareto manifold, which is a mean of experts and nothing else, takes it for these."""
COMMON = "preset", "num_experts", "mixtures_per_step", "support_size"
"""Settings of pretrain-soe that the comparison gives all methods, and their options may change."""
GROUPS = "groups"
"""The comparison's setting, which an entry with groups of domains may have of its own."""
OF_THE_COMPARISON = {
    "name", "store", "method", "seed", "steps", "batch_size", "sequence_length", "ratios", "num_workers", "min_workers",
    "cores_per_worker", "use_gpu", "window_steps", "verify_store", "resize_check_seconds", "checkpoint_every",
    "checkpoints_kept", "report_every",
}  # fmt: skip
"""Settings of pretrain-soe that are the same for all methods, or have no place here."""
OF_THE_LAW = {
    "meta_distribution", "laws", "generic_share", "neighbourhood_scales", "by_size", "concentration",
}  # fmt: skip
"""Settings of pretrain-soe that say how mixtures are drawn, for methods that train on drawn ones."""


LABEL = re.compile(r"[a-z0-9-]+(:[A-Za-z0-9._-]{1,200})?")
"""Of an entry; it names files too."""
MIXTURE = "mixture-"
"""Begins the labels of models that are trained on one random mixture each."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One entry of the comparison's methods."""

    label: str
    method: FlatMethod
    options: dict[str, Any]
    law: dict[str, Any] = field(default_factory=dict)
    """Settings of pretrain-soe of its mixtures, where they are not sparse ones of support_size domains."""
    variant: bool = False
    """Whether it stands beside the same method without options, to see what these do."""

    @property
    def anew(self) -> bool:
        """Whether it pretrains for each target anew, and has no model for others."""
        return isinstance(self.method, Crisp)


def of_mixture(row: int) -> str:
    """The label of the contender that is trained on that mixture."""
    return f"{MIXTURE}{row:03d}"


def is_mixture(label: str) -> bool:
    """Whether a contender of that label is a model that was trained on one of the mixtures."""
    return label.startswith(MIXTURE)


def step_tokens(settings: CompareMethods) -> int:
    """Tokens of a step, the same for all methods."""
    chosen = preset(str(settings.preset)).training
    batch_size = settings.batch_size or chosen.batch_size
    return batch_size * (settings.sequence_length or chosen.sequence_length)


def contenders(settings: CompareMethods, store: DomainStore, *, seed: int, steps: int) -> list[Contender]:
    """The methods of the settings (of_size), with `steps` of pretraining each.

    Raises ValueError, naming the entry, for a method that is not there, or that these sizes and options do not allow.
    """
    labels = _labels(settings)
    made = []
    for label in labels:
        try:
            variant = ":" in label and label.partition(":")[0] in labels
            one = _contender(settings, store, label, seed=seed, steps=steps)
            made.append(replace(one, variant=variant))
        except (UserError, ValidationError) as error:
            said = str(user_error(error)).removesuffix(".")
            others = " Leave it out of methods, or change the sizes." if len(labels) > 1 else ""
            raise UserError(f"{label}: {said}.{others}") from error
    return made


def _labels(settings: CompareMethods) -> list[str]:
    from soe_model.methods import METHODS

    labels = list(METHODS) if settings.methods is None else settings.methods
    twice = [label for label in labels if labels.count(label) > 1]
    if not labels or twice:
        fault = f"{twice[0]!r} stands in methods twice" if twice else "methods is empty"
        raise UserError(f"{fault}; name each once, a second form of a method as NAME:WORD.")
    if wrong := [label for label in labels if not LABEL.fullmatch(label)]:
        raise UserError(
            f"{wrong[0]!r} in methods names no entry: give NAME or NAME:WORD, a word of letters, digits, '.', '-' and "
            "'_'."
        )
    if unknown := sorted(settings.options.keys() - set(labels)):
        raise UserError(f"options are of {unknown[0]!r}, which is not in methods: {', '.join(labels)}.")
    return labels


def _contender(
    settings: CompareMethods, store: DomainStore, label: str, *, seed: int, steps: int
) -> Contender:
    name, options = label.partition(":")[0], settings.options.get(label, {})
    kind = method_named(name)
    grouped = issubclass(kind, GroupedMethod)  # type: ignore[arg-type]
    mine = {field.name for field in fields(kind)} - {field.name for field in fields(FlatMethod)} - {"group_K"}  # type: ignore[arg-type]
    mine |= {GROUPS} if grouped else set()
    settings_of_run = Pretrain.model_fields.keys() - (mine - OF_THE_COMPARISON)
    own = {key: value for key, value in options.items() if key not in settings_of_run}
    # None: as if it were not given.
    of_run = {key: value for key, value in options.items() if key in settings_of_run and value is not None}
    law = {key: of_run.pop(key) for key in OF_THE_LAW & of_run.keys()}
    if wrong := sorted((own.keys() - mine) | (of_run.keys() & OF_THE_COMPARISON)):
        raise UserError(
            f"{wrong[0]} is no option of it; there are {', '.join(sorted(mine)) or 'none of its own'}, and those "
            "settings of pretrain-soe that are not the same for all methods."
        )
    if of_run.get("train_generic") and name not in (SOUP, PARETO):
        raise UserError("train_generic is for methods that make a model of each mixture: leave it out.")
    soup, training = _configs(settings, store, name, of_run, seed=seed, steps=steps)
    windows_K = store.windows_K(training.sequence_length)
    arguments: dict[str, Any] = {
        "soup": soup,
        "training": training,
        "generic_K": torch.from_numpy(window_shares(windows_K)).float(),
        "centroids_KD": torch.from_numpy(store.tree.leaves_KD),
    } | {
        key: tuple(value) if isinstance(value, list) else value for key, value in own.items() if key != GROUPS
    }
    if "seed" in mine:  # of what a method draws after its training
        arguments.setdefault("seed", seed)
    if grouped:
        most = own.get(GROUPS, settings.groups)
        arguments["group_K"] = coarse_groups(arguments["generic_K"], _groups(most, store))
    made = kind(**arguments)
    assert isinstance(made, FlatMethod)
    # `training` is that of one run: where there are several, all of them together have the budget.
    runs = -(-made.cost().pretraining_tokens // (steps * step_tokens(settings)))
    if runs > 1:
        if steps < runs:
            raise UserError(
                f"its {runs} runs have less than a step each of {steps} steps. Give more tokens, or hours."
            )
        made = kind(**arguments | {"training": training.over(steps // runs)})
        assert isinstance(made, FlatMethod)
    if law:
        law |= {key: of_run[key] for key in ("support_size",) if key in of_run}
    _check_law(law, made, store)
    return Contender(label=label, method=made, options=own, law=law)


def _check_law(law: dict[str, Any], made: FlatMethod, store: DomainStore) -> None:
    """Raise ValueError for a law that cannot be on these domains, and for one of a method that draws no mixtures."""
    if isinstance(made, Crisp) or all(run.domain_weights_K is not None for run in made.runs()):
        if law:
            raise UserError(
                f"{min(law)} says how mixtures are drawn, and its runs have one mixture each: leave it out."
            )
        return
    settings = Pretrain(**law)
    for name in (settings.meta_distribution, *(one.law for one in settings.laws or ())):
        if "ratios" in SETTINGS_OF_LAW[name]:
            raise UserError(
                f"the law {name} takes its mixtures from a table, which a comparison does not read: name another law."
            )
    windows_K = store.windows_K(made.training.sequence_length)
    meta_distribution(settings, made.training, store).check(Domains(windows_K))


def _configs(
    settings: CompareMethods, store: DomainStore, name: str, of_run: dict[str, Any], *, seed: int, steps: int
) -> tuple[SoupConfig, TrainingConfig]:
    common = {name: getattr(settings, name) for name in COMMON} | of_run
    chosen = preset(str(common["preset"]))
    same = preset(str(settings.preset)).training  # of all methods, also of one with another preset
    sizes = {
        "batch_size": settings.batch_size or same.batch_size,
        "sequence_length": settings.sequence_length or same.sequence_length,
    }
    warmup_steps = common.pop("warmup_steps", chosen.training.over(steps).warmup_steps)
    pretrain = Pretrain(**common, **sizes, seed=seed, steps=steps, warmup_steps=warmup_steps)
    resolved = resolve(pretrain, store)
    training = resolved.training
    if name != SOUP:
        rates = ["learning_rate"] + ["expert_learning_rate"] * (name == PARETO)
        twins = dict.fromkeys(rates, of_run.get("learning_rate", chosen.generic_learning_rate))
        training = replace(training, **{rate: value for rate, value in twins.items() if rate not in of_run})
    return resolved.soup, training


def _groups(most: int | None, store: DomainStore) -> int:
    """The largest number of groups, up to the one that is asked for, that share the domains evenly."""
    if most is not None and (type(most) is not int or most < 1):
        raise UserError(f"groups is {most!r}; it must be a whole number, at least 1.")
    most = most or len(store.tree.coarse_CD)
    return max(
        number for number in range(1, min(most, store.num_domains) + 1) if store.num_domains % number == 0
    )
