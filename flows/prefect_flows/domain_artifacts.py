"""What the Prefect UI shows of a store's domains: their sizes as a picture and a table, and the atlas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from flows.atlas import page as atlas_page
from flows.reporting import charts
from flows.reporting.artifact_text import artifact_key, markdown_table, number
from pipeline.corpus.accounts import account_lines
from storage_schema.domains import DomainStore
from storage_schema.layout import store_and_additions, store_to_write
from storage_schema.manifest import read_manifest

LARGEST_DOMAINS = 64
"""Rows of the table of domains, at most."""
LENGTHS = (128, 512, 1024, 2048)
"""Sequence lengths for which the tails are reported."""


def publish_domains(name: str) -> None:
    """The sizes of the domains: a picture, a table of the largest with the commonest source of each; the atlas."""
    store = DomainStore(store_to_write(name))
    key = artifact_key("domains", name.rstrip("/").rpartition("/")[2])
    create_markdown_artifact(domains_card(store), key=key, description="The domains and their sizes.")
    create_table_artifact(
        domains_table(store),
        key=f"{key}-table",
        description=f"The largest domains, {LARGEST_DOMAINS} at most, and where most of each is from.",
    )
    atlas = store.folder.parent / atlas_page.FILE_NAME
    if atlas.exists():
        create_link_artifact(
            atlas.as_uri(), link_text=str(atlas), key=f"{key}-atlas", description=atlas_text(atlas)
        )


def domains_card(store: DomainStore) -> str:
    """Markdown: counts, the spread of the sizes, the digest and a picture."""
    tokens_K = store.tokens_K
    quantiles = np.quantile(tokens_K, (0, 0.25, 0.5, 0.75, 1)).astype(int).tolist()
    lines = [
        "# Domains",
        f"{store.num_domains:,} domains of {int(store.passages_K.sum()):,} passages and "
        f"{int(tokens_K.sum()):,} tokens; {int((tokens_K == 0).sum())} are empty. "
        f"Imbalance {store.tree.imbalance:.2f} (1 is equal sizes).",
        charts.as_markdown(charts.domain_sizes(tokens_K.tolist()), "tokens of each domain"),
        markdown_table(
            ["tokens of a domain", "least", "25 %", "median", "75 %", "most"],
            [["", *map(number, quantiles)]],
        ),
        markdown_table(["sequence length", *(f"{length:,}" for length in LENGTHS)], _tails(store)),
        *_clustering(store),
        *_account(store),
        f"Store `{store.folder.parent}`, digest `{store.digest}`.",
    ]
    atlas = store.folder.parent / atlas_page.FILE_NAME
    if atlas.exists():
        lines.append(atlas_text(atlas))
    return "\n\n".join(lines)


def _tails(store: DomainStore) -> list[list[str]]:
    """The tokens that are lost in each domain's incomplete last window, at several sequence lengths."""
    lost, without = [], []
    for length in LENGTHS:
        windows_K = store.windows_K(length)
        lost.append(f"{1 - length * windows_K.sum() / max(1, store.tokens_K.sum()):.2%}")
        without.append(number(int((windows_K == 0).sum())))
    return [["tokens lost to tails", *lost], ["domains without a window", *without]]


def _clustering(store: DomainStore) -> list[str]:
    """How the tree came out, where its manifest says so."""
    counts = store.manifest.counts
    names = ("coarse_inertia", "leaf_inertia", "splits", "empty_domains", "tiny_domains", "largest_domain")
    rows = [[name.replace("_", " "), number(counts[name])] for name in names if name in counts]
    if (passages := store.folder.parent / "passages").exists():
        cut = read_manifest(passages, "passages").counts
        dropped = cut["train_duplicates_dropped"]
        rows.append(["exact duplicates dropped", f"{dropped / max(1, dropped + cut['passages']):.2%}"])
    return [markdown_table(["clustering", ""], rows)] if rows else []


def _account(store: DomainStore) -> list[str]:
    """How many documents and passages were read, kept and dropped, for the store and for each addition."""
    lines = []
    for part in store_and_additions(store.folder.parent):
        if (passages := part / "passages").exists():
            of = "" if part == store.folder.parent else f"Addition {part.name}: "
            lines += [f"{of}{line}" for line in account_lines(read_manifest(passages, "passages").counts)]
    return ["## What was read", *lines] if lines else []


def atlas_text(path: Path) -> str:
    """Where the atlas lies. The path is written out because browsers open no file from a link on an http page."""
    return (
        f"The domain atlas: each domain's words, passages and numbers on a map. Open `{path}` in a browser on the "
        "machine where it lies, or copy it: it is one file."
    )


def domains_table(store: DomainStore) -> list[dict[str, Any]]:
    """One row for each of the largest domains: passages, tokens, share, and its commonest source."""
    tokens_K = store.tokens_K
    rows = []
    for domain in np.argsort(-tokens_K, kind="stable")[:LARGEST_DOMAINS].tolist():
        if tokens_K[domain] == 0:
            break
        source, share = _commonest_source(store, domain)
        rows.append(
            {
                "domain": domain,
                "passages": int(store.passages_K[domain]),
                "tokens": int(tokens_K[domain]),
                "share": f"{100 * tokens_K[domain] / tokens_K.sum():.2f} %",
                "mostly": f"{source} ({share:.0%})",
                "mean distance": round(float(store.tree.mean_distance_K[domain]), 3),
            }
        )
    return rows


def _commonest_source(store: DomainStore, domain: int) -> tuple[str, float]:
    sources = store.passages(domain)["source"]
    counts = pc.value_counts(sources).to_pylist()
    most = max(counts, key=lambda entry: entry["counts"])
    return most["values"], most["counts"] / len(sources)
