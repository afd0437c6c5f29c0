"""The parameters of pretrain-soe."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from flows.settings.base import Settings
from storage_schema.errors import UserError


def _share(value: Any, read: ValidatorFunctionWrapHandler) -> Any:
    """The share, or one error in place of pydantic's, which has one for each kind that it may be."""
    try:
        return read(value)
    except ValidationError:
        raise UserError("it must be a number from 0 to 1, 'uniform' or 'triangular'") from None


GenericShare = Annotated[
    Annotated[float, Field(ge=0, le=1)] | Literal["uniform", "triangular"], WrapValidator(_share)
]


class MixtureLaw(Settings):
    """One of the laws of `mixed`; the settings are those of the same names in `Pretrain`."""

    law: Literal["sparse", "uniform", "dirichlet", "neighbourhood", "fixed", "recorded"]
    share: float = Field(gt=0, allow_inf_nan=False, description="Of the mixtures; shares may have any sum.")
    support_size: int | None = Field(None, ge=1)
    by_size: bool = False
    concentration: float = Field(1.0, gt=0)
    neighbourhood_scales: list[float] | None = Field(None, min_length=1)
    generic_share: GenericShare | None = None
    ratios: str | None = None


class Pretrain(Settings):
    """A store → a soup (or its generic twin). Unset fields take the preset's value (soe_model/presets.py)."""

    name: str = Field("soup", description="Name, or `s3://` URI, of the run and of the soup it makes.")
    store: str = Field(
        "environment", description="The store whose domains to train on: name, path or `s3://` URI."
    )
    preset: str = Field("tiny", description="tiny, small, paper-35m, paper-55m, paper-110m or paper-335m.")
    method: Literal["soup", "generic"] = Field(
        "soup", description="`generic` trains the twin: one model, fixed mixture."
    )
    steps: int | None = Field(None, ge=1)
    batch_size: int | None = Field(None, ge=1, description="Sequences per step, over all workers.")
    sequence_length: int | None = Field(None, ge=8)
    mixtures_per_step: int | None = Field(
        None, ge=1, description="W: instances per step; divides batch_size."
    )
    meta_distribution: Literal[
        "sparse", "uniform", "dirichlet", "neighbourhood", "fixed", "recorded", "mixed"
    ] = Field(
        "sparse",
        description="The law of the mixtures, the paper's pi: `sparse` draws support_size domains, then uniform "
        "weights on them; `uniform` puts uniform weights on all domains; `dirichlet` draws Dirichlet weights "
        "(on support_size domains, or on all); `neighbourhood` takes the domains around a random passage; `mixed` "
        "draws each mixture from one of `laws`; `recorded` takes them from `ratios`, one per row; `fixed` is the one "
        "row of `ratios` in every step (with method=generic: CRISP, one model for one set of texts).",
    )
    support_size: int | None = Field(None, ge=1, description="s: domains in a mixture (section 2.4).")
    by_size: bool = Field(
        False,
        description="sparse: draw domains in proportion to their size; dirichlet: mixtures around the generic one.",
    )
    concentration: float = Field(1.0, gt=0, description="dirichlet: the smaller, the sparser.")
    neighbourhood_scales: list[float] | None = Field(
        None,
        min_length=1,
        description="neighbourhood: squared distances of embeddings, one of them for each mixture; a domain at the "
        "squared distance d weighs its size times exp(-d/scale). None: 0.05, 0.1, 0.2, 0.4.",
    )
    generic_share: GenericShare | None = Field(
        None,
        description="Part of each mixture that is the generic one: a number from 0 to 1; `uniform`: another one for "
        "each mixture; `triangular`: the same, but 1-√u, a third on average. None: 0; neighbourhood: triangular.",
    )
    laws: list[MixtureLaw] | None = Field(
        None,
        description="mixed: the laws, each with its share of the mixtures and its own settings. The table of a "
        "`recorded` law has a row for every mixture of the run; the law takes the rows of those that fall to it.",
    )
    ratios: str | None = Field(
        None,
        description="recorded, fixed: path of a ratios.csv (`soe ratios` and `soe weights` write one). recorded: with "
        "at least steps x mixtures_per_step rows.",
    )
    train_generic: bool = Field(
        False,
        description="Each step also trains the generic instance, on all of its tokens, which is a second pass. Give it "
        "mixtures that are the corpus on the average, such as those drawn `by_size`.",
    )
    num_experts: int | None = Field(None, ge=1)
    learning_rate: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Of `shared` (and of the generic twin)."
    )
    expert_learning_rate: float | None = Field(None, gt=0, allow_inf_nan=False)
    router_learning_rate: float | None = Field(None, gt=0, allow_inf_nan=False)
    warmup_steps: int | None = Field(
        None, ge=0, description="Steps in which all rates rise linearly at the start; `steps` at most."
    )
    final_learning_rate_fraction: float | None = Field(
        None, ge=0, le=1, description="Share of the rates left at the last step, by a cosine; 1: constant."
    )
    gradient_clip: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Largest norm of the gradient of everything together."
    )
    beta1: float | None = Field(None, ge=0, lt=1, description="Adam's, of the first moment.")
    beta2: float | None = Field(None, ge=0, lt=1, description="Adam's, of the second moment.")
    epsilon: float | None = Field(None, gt=0, allow_inf_nan=False, description="Adam's.")
    router_hidden: int | None = Field(None, ge=1, description="Hidden units of the router.")
    router_input_scale: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Size of the router's first weights at the start."
    )
    router_output_scale: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="About that of the coefficients at the start. None: the preset's, made "
        "smaller with more experts.",
    )
    expert_std: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="Of the experts' parameters at the start."
    )
    seed: int = Field(0, ge=0, lt=1 << 63)
    backbone: dict[str, Any] | None = Field(
        None,
        description="A Hugging Face causal-LM configuration with its model_type, in place of the preset's GPT-2. The "
        "vocabulary, the positions and the end of text are filled in where not given.",
    )
    expert_rank: int | None = Field(
        None,
        ge=1,
        description="Experts are low-rank products of each matrix (section 2.6); none: full experts.",
    )
    optimizer: str = Field(
        "adam", description="Of the experts (soe_model/optimizers): `adam` is exact, others hold fewer bytes."
    )
    micro_batch_size: int | None = Field(
        None, ge=1, description="Sequences of one pass on one worker; less is less memory, the same result."
    )
    compile_model: bool = Field(False, description="Compile the backbone (torch.compile).")
    deterministic: bool = Field(
        False, description="Only bitwise reproducible kernels; an error where there is none."
    )
    num_workers: int = Field(1, ge=1, le=4096)
    cores_per_worker: int | None = Field(
        None,
        ge=1,
        description="None: the workers of a machine share its cores. Where several runs share a machine, give each its "
        "own: a step of two small runs that both used two cores took 4 to 8 times as long as one alone.",
    )
    min_workers: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="Go on with so few workers when nodes are lost, and with up to num_workers when they are there "
        "(always a divisor of batch_size); none: exactly num_workers.",
    )
    window_steps: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="Steps whose data a worker gets at once; none: about 16 MB of it.",
    )
    verify_store: bool = Field(
        False,
        description="First read all files of the store's domains and compare their sha256.",
    )
    resize_check_seconds: float = Field(
        60.0, gt=0, description="With min_workers: seconds between two looks for room for more workers."
    )
    use_gpu: bool = Field(False, description="One GPU per worker; an error at once if there are not so many.")
    checkpoint_every: int = Field(200, ge=1, description="Steps between checkpoints.")
    checkpoints_kept: int = Field(
        2, ge=1, description="The newest ones; older ones serve if the newest is damaged."
    )
    report_every: int = Field(50, ge=1, description="Steps between reports to Ray Train: all workers meet.")

    @property
    def least_workers(self) -> int:
        """The fewest workers that the run goes on with."""
        return self.min_workers or self.num_workers
