"""The parameters of compare-methods."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from flows.settings.base import Settings

SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "methods": [
            "soup", "generic", "crisp", "domain-experts", "branched-experts", "merged-linear",
            "merged-task-arithmetic", "pareto", "smear",
        ],
        "preset": "tiny",
        "seeds": [0, 1],
        "hours": 0.35,
        "groups": 8,
        "max_sets": 4,
        "points": 4,
        "mixtures": 0,
        "fine_tune_tokens": [],
    },
    "full": {
        "methods": None,
        "preset": "small",
        "seeds": [0, 1, 2],
        "hours": None,
        "groups": None,
        "max_sets": 16,
        "points": 6,
        "mixtures": 12,
        "fine_tune_tokens": [1_000, 4_000, 16_000, 64_000],
    },
}  # fmt: skip
"""What each size gives the settings that are not given."""


class CompareMethods(Settings):
    """A store → every method on the same stream, tokens and model, and a page on which to choose."""

    name: str = Field("comparison", description="Name or path of the folder of the comparison.")
    store: str = Field(
        "environment", description="The store: its domains to train on, its held-out text to measure."
    )
    size: Literal["small", "full"] = Field(
        "small",
        description="What the settings below are where none is given. small: the tiny preset, 9 methods, 2 seeds, "
        "about half an hour on 2 cores. full: the small preset, all methods, 3 seeds, all of the preset's steps.",
    )
    methods: list[str] | None = Field(
        None,
        description="Names of soe_model.methods; one may come again with other options, as NAME:WORD.",
    )
    options: dict[str, dict[str, Any]] = Field(
        {},
        description="By an entry of `methods`: settings of pretrain-soe, or fields of the method, for it alone.",
    )
    preset: str | None = Field(None, description="Model and training, as pretrain-soe's `preset`.")
    seeds: list[int] | None = Field(None, min_length=1, description="Each method is trained once with each.")
    tokens: int | None = Field(
        None,
        ge=1,
        description="Pretraining tokens of each method and seed (of CRISP: for each set). None: by `hours`.",
    )
    hours: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="As many tokens as the whole comparison can do in these hours, by a rate that is measured first, "
        "and at most the preset's. None: the preset's tokens.",
    )
    batch_size: int | None = Field(None, ge=1, description="Sequences per step.")
    sequence_length: int | None = Field(None, ge=8)
    mixtures_per_step: int | None = Field(
        None, ge=1, description="W, of methods that train on sparse mixtures; divides batch_size."
    )
    support_size: int | None = Field(None, ge=1, description="s: domains in a sparse mixture.")
    num_experts: int | None = Field(
        None, ge=1, description="Of the soup, and of methods with as many experts."
    )
    groups: int | None = Field(
        None,
        ge=1,
        description="At most so many groups of domains (a number that shares them evenly), for methods with one model "
        "for each, which an entry's options may change. None: the coarse clusters.",
    )
    held_out: bool = Field(True, description="The store's held-out sources are sets.")
    texts: dict[str, str] = Field(
        {}, description="More sets: name → texts, a path or URI, as build-domains' `corpus`."
    )
    text_field: str = Field("text", description="Of `texts`: the field that holds the text.")
    source_field: str = Field("source", description="Of `texts`: the field that holds the source.")
    max_texts: int = Field(200, ge=1, description="Texts of a set that say what it is like.")
    evaluation_passages: int = Field(20, ge=1, description="Further texts of a set, to measure losses on.")
    max_sets: int | None = Field(None, ge=1, description="Of the store's held-out sources.")
    points: int | None = Field(
        None, ge=1, le=100, description="Points of equal tokens at which losses are measured."
    )
    mixtures: int | None = Field(
        None,
        ge=0,
        le=1000,
        description="Random mixtures on each of which a model is trained with each seed, to see whether the soup, "
        "which tells their losses without training, ranks them alike. 0: none.",
    )
    fine_tune_tokens: list[Annotated[int, Field(ge=1)]] | None = Field(
        None,
        description="After pretraining, the model of each set is fine-tuned on so many tokens of its texts, on each "
        "number anew; a set with less text gives all of it. Empty: no fine-tuning.",
    )
    multiple_choice: str | None = Field(
        None,
        description="BIG-bench's folder benchmark_tasks, or its archive: questions of `multiple_choice_tasks` are "
        "asked after training, by log-likelihood, with the extra `exports`. ARC and MMLU could not be had. None: none.",
    )
    multiple_choice_tasks: list[str] = Field(
        ["general_knowledge", "strategyqa", "social_iqa", "logical_deduction/three_objects"],
        min_length=1,
        description="Folders of BIG-bench, each with a task.json of questions with `target_scores`.",
    )
    cores_per_cell: int = Field(1, ge=1, description="Cores of a method's training; others train beside it.")
    checkpoint_seconds: float = Field(60.0, gt=0, description="Between the checkpoints of a training.")

    def of_size(self) -> CompareMethods:
        """The same with the values of its size where none was given."""
        chosen = dict(SIZES[self.size])
        if self.tokens is not None:
            del chosen["hours"]
        update = {name: value for name, value in chosen.items() if getattr(self, name) is None}
        return self.model_copy(update={"seeds": list(dict.fromkeys(self.seeds or chosen["seeds"]))} | update)
