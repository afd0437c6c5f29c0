"""The parameters of build-domains and add-documents."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from flows.settings.base import Settings
from pipeline.corpus.defaults import MAX_BAD_DOCUMENTS, MAX_DAMAGED_FILES

TextField = Annotated[str, Field(description="JSON lines and Parquet: the field that holds the text.")]
MaxBadDocuments = Annotated[
    int, Field(ge=0, description="Unreadable documents skipped before it is an error.")
]
MaxDamagedFiles = Annotated[
    int,
    Field(
        ge=0,
        description="Files that end early, or of which nothing can be read, before it is an error; what could be read "
        "is kept.",
    ),
]


class BuildDomains(Settings):
    """Corpus → passages → embeddings → tree of centroids → domains."""

    store: str = Field("environment", description="Name, path or `s3://` URI of the store to build.")
    corpus: str = Field(
        "environment",
        description="`environment` (text files of the installed Python packages, the standard library and "
        "the manual pages), or the path or `s3://` URI of a JSON-lines, Parquet or text file, of a folder of "
        "them, or of a Hugging Face dataset saved with save_to_disk.",
    )
    text_field: TextField = "text"
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
    max_bad_documents: MaxBadDocuments = MAX_BAD_DOCUMENTS
    max_damaged_files: MaxDamagedFiles = MAX_DAMAGED_FILES
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
        description="What computes the embedder. auto: torch-float16 on GPUs; torch-bfloat16 on CPUs where it is fast "
        "(AMX, or AMD with AVX-512 for it); else openvino where it is installed, or torch-float32. measured: what is "
        "clearly the fastest on this CPU, now. On a CPU both take torch-float32 for fewer than 2,000 passages.",
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
    searched_nodes: int = Field(
        4,
        ge=1,
        le=1024,
        description="A passage falls into the nearest leaf of so many nearest coarse clusters; 1: of the nearest one.",
    )
    use_gpu: bool = Field(False, description="Embed and cluster on GPUs; an error at once if there are none.")
    seed: int = Field(0, ge=0, lt=1 << 63)
    rebuild: bool = Field(False, description="Replace stages built with other settings.")


class AddDocuments(Settings):
    """More documents → an existing store, with its tokenizer, embedder and tree; nothing in it is rewritten."""

    store: str = Field("environment", description="The store to add to: name, path or `s3://` URI.")
    corpus: str = Field(description="As build-domains' `corpus`. The same one again is recognised.")
    text_field: TextField = "text"
    source_field: str = Field("source", description="The field naming a document's source.")
    max_bad_documents: MaxBadDocuments = MAX_BAD_DOCUMENTS
    max_damaged_files: MaxDamagedFiles = MAX_DAMAGED_FILES
    use_gpu: bool = Field(False, description="Embed on GPUs; an error at once if there are none.")
