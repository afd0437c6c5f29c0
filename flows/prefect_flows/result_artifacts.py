"""What the Prefect UI shows of a finished run: pictures, tables, and how to go on."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from flows.atlas import page as atlas_page
from flows.reporting import charts
from flows.reporting.artifact_text import artifact_key
from flows.settings import Pretrain, Specialize
from flows.training.run_log import read_log
from pipeline.corpus.accounts import account_lines
from storage_schema.domains import DomainStore
from storage_schema.json_files import read_object
from storage_schema.layout import (
    MADE,
    run_folder,
    soup_folder,
    specialist_folder,
    store_and_additions,
    store_folder,
)
from storage_schema.manifest import read_manifest

LARGEST_DOMAINS = 64
"""Rows of the table of domains, at most."""
LENGTHS = (128, 512, 1024, 2048)
"""Sequence lengths for which the tails are reported."""


def publish_domains(name: str) -> None:
    """The sizes of the domains: a picture, a table of the largest with the commonest source of each; the atlas."""
    store = DomainStore(store_folder(name))
    key = artifact_key("domains", name.rpartition("/")[2])
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


def publish_soup(config: Pretrain) -> None:
    """The run's card: what was trained, on what, its loss curve, and the command that resumes it."""
    create_markdown_artifact(
        soup_card(config),
        key=artifact_key(config.method, config.name.rpartition("/")[2]),
        description="The run.",
    )


def publish_specialists(config: Specialize) -> None:
    """The specialists of the run and, where they were measured, their losses.

    They come from the record that the run wrote at its end, because the folder may hold others too.
    """
    folder = specialist_folder(config.output)
    body = read_object(folder / MADE)["report"]
    if "specialist_sets" not in body:
        gains, notes = body.get("gains", {}), body.get("notes", {})  # not noted by older releases
        rows = [
            {
                "specialist": name,
                "gain": gains.get(name, ""),
                "folder": str(folder / name),
                "texts": " ".join(notes.get(name, [])),
            }
            for name in body["specialists"]
        ]
        create_table_artifact(
            rows, key=artifact_key("specialists", folder.name), description="The specialists."
        )
        return
    create_markdown_artifact(
        losses_card(body), key=artifact_key("losses", folder.name), description="Losses on held-out text."
    )
    create_table_artifact(
        [_rounded(row) for row in body["specialist_sets"]],
        key=artifact_key("losses", folder.name, "table"),
        description="Nats per token; less is better.",
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
        _table(
            ["tokens of a domain", "least", "25 %", "median", "75 %", "most"],
            [["", *map(_number, quantiles)]],
        ),
        _table(["sequence length", *(f"{length:,}" for length in LENGTHS)], _tails(store)),
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
        without.append(_number(int((windows_K == 0).sum())))
    return [["tokens lost to tails", *lost], ["domains without a window", *without]]


def _clustering(store: DomainStore) -> list[str]:
    """How the tree came out, where its manifest says so."""
    counts = store.manifest.counts
    names = ("coarse_inertia", "leaf_inertia", "splits", "empty_domains", "tiny_domains", "largest_domain")
    rows = [[name.replace("_", " "), _number(counts[name])] for name in names if name in counts]
    if (passages := store.folder.parent / "passages").exists():
        cut = read_manifest(passages, "passages").counts
        dropped = cut["train_duplicates_dropped"]
        rows.append(["exact duplicates dropped", f"{dropped / max(1, dropped + cut['passages']):.2%}"])
    return [_table(["clustering", ""], rows)] if rows else []


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


def soup_card(config: Pretrain) -> str:
    """Markdown: the run's settings, numbers, digests, loss curve, and the command that makes it again."""
    manifest = read_manifest(soup_folder(config.name), "soup")
    summary = read_object(run_folder(config.name) / "summary.json")
    log = {row["step"]: row for row in read_log(run_folder(config.name))}
    inputs = [[f"{name} digest", f"`{digest}`"] for name, digest in manifest.inputs.items()]
    rows = [[name.replace("_", " "), _number(value)] for name, value in summary.items()]
    chosen = f'{{"config": {config.model_dump_json(exclude_defaults=True)}}}'
    command = ["prefect", "deployment", "run", "pretrain-soe", "--params", chosen]
    lines = [
        f"# {'Soup' if config.method == 'soup' else 'Generic twin'} {config.name}",
        *charts.of_log([log[step] for step in sorted(log)]),
        _table(["", ""], [*rows, ["digest", f"`{manifest.digest}`"], *inputs]),
        f"In `{soup_folder(config.name)}`; checkpoints and log in `{run_folder(config.name)}`.",
        "The same command resumes the run where it was cut off, and finds it finished when it is:",
        f"```\n{shlex.join(command)}\n```",
    ]
    return "\n\n".join(lines)


def training_card(config: Pretrain) -> str | None:
    """Markdown about a run that is under way: its loss curve and newest numbers; None before there are any."""
    rows = read_log(run_folder(config.name))
    if not rows:
        return None
    last = rows[-1]
    newest = {
        name: value for row in rows for name, value in row.items()
    }  # some are not measured for every row
    numbers = [[name.replace("_", " "), _number(value)] for name, value in newest.items()]
    return "\n\n".join(
        [
            f"# {'Soup' if config.method == 'soup' else 'Generic twin'} {config.name}, step {last['step']:,.0f}",
            *charts.of_log(rows),
            _table(["", ""], numbers),
            f"In `{run_folder(config.name)}`. If it is cut off, the same command resumes it.",
        ]
    )


def losses_card(evaluation: dict[str, Any]) -> str:
    """Markdown: a picture of the losses of every specialist set, if a generic twin was measured beside it, and what
    each specialist gains over the generic instance, and how its texts were taken.
    """
    sets = [s for s in evaluation["specialist_sets"] if s.get("generic_loss") is not None]
    gains = "\n".join(f"- **{name}**: {line}" for name, line in evaluation.get("gains", {}).items())
    if not sets:
        shown = "No generic twin was measured (`compare_with`): see the table."
    else:
        shown = charts.as_markdown(charts.specialist_losses(sets), "losses of the specialist sets")
    notes = "\n".join(f"- **{name}**: {' '.join(said)}" for name, said in evaluation.get("notes", {}).items())
    return "\n\n".join(filter(None, ["# Losses", shown, gains, notes]))


def _commonest_source(store: DomainStore, domain: int) -> tuple[str, float]:
    sources = store.passages(domain)["source"]
    counts = pc.value_counts(sources).to_pylist()
    most = max(counts, key=lambda entry: entry["counts"])
    return most["values"], most["counts"] / len(sources)


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
