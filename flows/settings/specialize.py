"""The parameters of specialize."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from flows.settings.base import Settings

SpecialistMethod = Literal[
    "blended", "refined", "nearest-centroids", "learned-coefficients", "fine-tuned", "generic"
]


class Specialize(Settings):
    """A few texts → a small stand-alone model, for one or many specialist sets."""

    soup: str = Field("soup", description="Name, path or `s3://` URI of the soup.")
    texts: dict[str, str] = Field(
        {}, description="Specialist's name → texts: a path or URI, as build-domains' `corpus`."
    )
    text_field: str = Field("text", description="Of `texts`: the field that holds the text.")
    source_field: str = Field("source", description="Of `texts`: the field that holds the source.")
    held_out_of: str | None = Field(
        None, description="A store: every held-out source with enough passages becomes a specialist set."
    )
    compare_with: str | None = Field(
        None, description="The generic twin to evaluate beside: name, path or `s3://` URI."
    )
    output: str = Field("specialists", description="Name or path of the folder that receives the models.")
    method: SpecialistMethod | None = Field(
        None,
        description="Unless given: `refined`, or `blended` if the bank has over 30 million numbers. `blended`: domain "
        "weights between the generic mixture and the nearest centroids, as far as surely helps on the texts; "
        "`nearest-centroids`: all the way (Algorithm 3). Neither trains. `refined`: from `blended` on, a few steps of "
        "gradient descent on the coefficients, as many as surely help. From the nearest centroids on: "
        "`learned-coefficients`, by gradient descent on the texts (section 2.7), or `fine-tuned`, all parameters. "
        "`generic`: the generic instance itself, for where a specialist gains nothing.",
    )
    rule: Literal["flat", "tree"] = Field(
        "flat",
        description="Nearest of all leaves (Algorithm 3), or the descent by which the store's passages fell.",
    )
    max_texts: int = Field(
        200, ge=1, description="Texts per set that decide its domain weights (and are learned from)."
    )
    evaluation_passages: int | None = Field(
        None,
        ge=0,
        description="Further passages per set, to measure losses on; 0: measure none; none: a fifth of the "
        "texts, 50 at most, and 20 of a store's held-out sources.",
    )
    max_sets: int = Field(16, ge=1)
    learning_steps: int = Field(100, ge=1, description="learned-coefficients and fine-tuned: steps at most.")
    learning_rate: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Of the same; none: a tenth of the size of the coefficients at the start, for "
        "fine-tuning 3e-4.",
    )
    replay_store: str | None = Field(None, description="fine-tuned: the store whose text is replayed.")
    replay_share: float = Field(
        0.0, ge=0, lt=1, description="fine-tuned: share of each batch from that store."
    )
    bootstrap: int = Field(
        16,
        ge=0,
        le=1000,
        description="Resamples of few texts that say how sure the domain weights are, 2 or more; 0: none.",
    )
    use_gpu: bool = Field(False, description="Make them on a GPU; an error at once if there is none.")
    rebuild: bool = Field(False, description="Replace specialists made with other settings.")
