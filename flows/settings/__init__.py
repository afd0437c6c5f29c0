"""The parameters of the flows. Prefect turns each model into a checked form; the jobs read the same JSON.

Relative names: a store, run, soup or specialist without a slash lives under ``SOE_HOME``
(see ``storage_schema/layout.py``); anything with a slash is a path. Give corpora as absolute paths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from storage_schema.errors import UserError

GenericShare = Annotated[float, Field(ge=0, le=1)] | Literal["uniform", "triangular"]
SpecialistMethod = Literal["blended", "nearest-centroids", "learned-coefficients", "fine-tuned"]


class Settings(BaseModel):
    """Parameters of a flow: unknown names are refused, values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def refuse_unused(settings: Settings, choice: str, reads: Mapping[str, Sequence[str]]) -> None:
    """Raise ValueError for a setting that was given and is read only where `choice` is another; None is as not given.

    Args:
        choice: the setting that decides.
        reads: each of its values → the settings that only some of them read.
    """
    chosen = getattr(settings, choice)
    for name in dict.fromkeys(name for used in reads.values() for name in used):
        value = getattr(settings, name)
        given = name in settings.model_fields_set and value is not None
        if given and name not in reads.get(chosen, ()):
            others = " or ".join(other for other, used in reads.items() if name in used)
            raise UserError(
                f"{name} is {value!r}, of which {choice}={chosen} has no use: leave it out, or choose {choice} "
                f"{others}."
            )


class BuildDomains(Settings):
    """Corpus → passages → embeddings → tree of centroids → domains."""

    store: str = Field("environment", description="Name or path of the store to build.")
    corpus: str = Field(
        "environment",
        description="`environment` (text files of the installed Python packages, the standard library and "
        "the manual pages), or the path or `s3://` URI of a JSON-lines, Parquet or text file, of a folder of "
        "them, or of a Hugging Face dataset saved with save_to_disk.",
    )
    text_field: str = Field("text", description="JSON lines and Parquet: the field that holds the text.")
    source_field: str = Field(
        "source",
        description="The field naming a document's source, where there is one: a string, or a whole number, which is "
        "taken as its digits. Null, empty and blank are none.",
    )
    held_out_sources: list[str] = Field([], description="Sources kept out of training altogether.")
    held_out_fraction: float = Field(
        0.02, ge=0, le=0.5, description="Share of the documents of every other source kept out of training."
    )
    max_documents_per_source: int | None = Field(
        None, ge=1, description="At most so many documents per source."
    )
    max_passages: int | None = Field(
        None, ge=1, description="Stop after so many training passages (spread over all documents)."
    )
    drop_duplicates: bool = Field(
        True, description="Keep each text once. Held-out text that is also trained on is dropped in any case."
    )
    max_bad_documents: int = Field(
        100, ge=0, description="Unreadable documents skipped before it is an error."
    )
    max_damaged_files: int = Field(
        0,
        ge=0,
        description="Files that end early, or of which nothing can be read, before it is an error; what could be read "
        "is kept.",
    )
    passage_characters: int = Field(2000, ge=64, le=100_000, description="Longest passage.")
    tokenizer: str | None = Field(None, description="Path of a tokenizer.json; none trains a byte-level BPE.")
    vocab_size: int = Field(32_000, ge=300, le=1 << 20)
    tokenizer_sample_characters: int = Field(
        200_000_000, ge=10_000, description="Text the BPE is trained on."
    )
    embedder: str = Field(
        "all-MiniLM-L6-v2",
        description="Any sentence-transformers model, by name or path. Without a hub, all-MiniLM-L6-v2 is "
        "taken from the `offline` extra.",
    )
    embedder_revision: str | None = Field(
        None, description="Commit, tag or branch of a hub's model; none: the newest, or what the machine has."
    )
    max_seq_length: int = Field(256, ge=8, le=8192, description="Word pieces of a passage the embedder sees.")
    embedder_runtime: Literal[
        "auto", "measured", "torch-float32", "torch-bfloat16", "torch-float16", "openvino"
    ] = Field(
        "auto",
        description="What computes the embedder. auto: torch-float16 on GPUs; torch-bfloat16 on CPUs with instructions "
        "for it; else openvino where it is installed, or torch-float32. measured: the fastest on this CPU, now.",
    )
    coarse_clusters: int = Field(64, ge=1, le=1024)
    leaf_clusters: int = Field(64, ge=1, le=1024, description="Leaves of each coarse cluster.")
    kmeans_iterations: int = Field(20, ge=1, le=1000)
    kmeans_starts: int = Field(1, ge=1, le=100, description="The best of so many fits of each node is kept.")
    kmeans_init: Literal["k-means++", "random"] = "k-means++"
    kmeans_size_limit: float | None = Field(
        1.5,
        gt=1,
        description="While fitting, a cluster of more than this many even shares is split; none: no bound.",
    )
    kmeans_sample: int = Field(
        128_000, ge=100, description="Passages each node of the tree is fitted on, at most."
    )
    use_gpu: bool = Field(False, description="Embed and cluster on GPUs; an error at once if there are none.")
    seed: int = Field(0, ge=0, lt=1 << 63)
    rebuild: bool = Field(False, description="Replace stages built with other settings.")


class AddDocuments(Settings):
    """More documents → an existing store, with its tokenizer, embedder and tree; nothing in it is rewritten."""

    store: str = Field("environment", description="The store to add to.")
    corpus: str = Field(description="As build-domains' `corpus`. The same one again is recognised.")
    text_field: str = Field("text", description="JSON lines and Parquet: the field that holds the text.")
    source_field: str = Field("source", description="The field naming a document's source.")
    max_bad_documents: int = Field(
        100, ge=0, description="Unreadable documents skipped before it is an error."
    )
    max_damaged_files: int = Field(
        0,
        ge=0,
        description="Files that end early, or of which nothing can be read, before it is an error; what could be read "
        "is kept.",
    )
    use_gpu: bool = Field(False, description="Embed on GPUs; an error at once if there are none.")


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

    name: str = Field("soup", description="Name of the run and of the soup it makes.")
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
    mixtures_per_step: int | None = Field(None, ge=1, description="W: instances a step; divides batch_size.")
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
        description="mixed: the laws, each with its share of the mixtures and its own settings.",
    )
    ratios: str | None = Field(
        None,
        description="recorded, fixed: path of a ratios.csv (`soe ratios` and `soe weights` write one).",
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
        None, ge=0, allow_inf_nan=False, description="About that of the coefficients at the start."
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
        description="First read all partitions of the store and compare their sha256.",
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


class Specialize(Settings):
    """A few texts → a small stand-alone model, for one or many specialist sets."""

    soup: str = Field("soup", description="Name or path of the soup.")
    texts: dict[str, str] = Field(
        {}, description="Specialist's name → texts: a path or URI, as build-domains' `corpus`."
    )
    text_field: str = Field("text", description="Of `texts`: the field that holds the text.")
    source_field: str = Field("source", description="Of `texts`: the field that holds the source.")
    held_out_of: str | None = Field(
        None, description="A store: every held-out source with enough passages becomes a specialist set."
    )
    compare_with: str | None = Field(None, description="Name of the generic twin to evaluate beside.")
    output: str = Field("specialists", description="Name or path of the folder that receives the models.")
    method: SpecialistMethod = Field(
        "blended",
        description="`blended`: domain weights between the generic mixture and the nearest centroids, as far as surely "
        "helps on the texts; `nearest-centroids`: all the way (Algorithm 3). Neither trains. From the nearest "
        "centroids on: `learned-coefficients`, by gradient descent on the texts (section 2.7), or `fine-tuned`, all "
        "parameters (3.2).",
    )
    rule: Literal["flat", "tree"] = Field(
        "flat", description="Nearest of all leaves (Algorithm 3), or greedy descent."
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
