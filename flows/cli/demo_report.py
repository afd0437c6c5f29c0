"""The result of the demonstration: the specialists beside the generic twin, as a file, a picture and a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flows.training.run_record import summary_of
from storage_schema.errors import UserError
from storage_schema.json_files import read_object
from storage_schema.layout import home, run_folder, soup_folder, specialist_folder, store_folder
from storage_schema.manifest import read_manifest, write_atomically

OF_GAIN = "soup_generic_instance_loss", "gain_low", "share", "refining_steps"
"""What a specialist is worth beside its own soup's generic instance."""
LOSSES = "generic_loss", "soup_loss"
STAGES = ("passages", "tokenizer", "embeddings", "domains")


def collect(*, store: str, soup: str, generic: str, specialists: str) -> dict[str, Any]:
    """Read what the demonstration measured from the files of its runs.

    Args:
        store: name of the store.
        soup: name of the soup's run.
        generic: name of the twin's run.
        specialists: name of the folder of specialists.

    Returns:
        ``specialist_sets`` (``name, generic_loss, soup_loss, unseen_source``, and ``OF_GAIN``), their ``mean``, that of
        the ``seen`` and of the ``unseen`` sources, ``generic_mixture`` (both models on the mixture of all domains),
        ``tokens`` seen by each, ``train_seconds`` of each and ``stage_seconds`` of the store. Losses are in nats per
        token.

    Raises:
        ValueError: the two runs saw different numbers of tokens, so their losses do not compare, the specialists
            were not measured as the demonstration's are, or the folder of a run was removed.
    """
    file = specialist_folder(specialists) / "evaluation.json"
    evaluation = read_object(file)
    runs = {"generic": _summary(generic), "soup": _summary(soup)}
    if runs["generic"]["tokens"] != runs["soup"]["tokens"]:
        raise UserError(
            f"{soup} saw {runs['soup']['tokens']} tokens and {generic} {runs['generic']['tokens']}: "
            "their losses cannot be compared. Give both the same steps, batch_size and sequence_length."
        )
    keys = ("name", "generic_loss", "soup_loss", "unseen_source")
    try:
        sets = [
            {key: row[key] for key in keys} | {key: row[key] for key in OF_GAIN if key in row}
            for row in evaluation["specialist_sets"]
        ]
        mixture = {key: evaluation["generic_mixture"][key] for key in LOSSES}
    except KeyError as missing:
        raise UserError(
            f"{file} has no {missing}: it is of specialists made with other settings. To keep them, set SOE_HOME to "
            f"a new folder; else remove {file.parent} and run `soe demo` again."
        ) from missing
    return {
        "specialist_sets": sets,
        "mean": _mean(sets),
        "seen": _mean([row for row in sets if not row["unseen_source"]]),
        "unseen": _mean([row for row in sets if row["unseen_source"]]),
        "generic_mixture": mixture,
        "tokens": runs["soup"]["tokens"],
        "train_seconds": {name: run["train_seconds"] for name, run in runs.items()},
        "stage_seconds": {kind: read_manifest(store_folder(store) / kind, kind).seconds for kind in STAGES},
    }


def write(result: dict[str, Any]) -> Path:
    """Write ``summary.json`` and ``plot.png`` to ``SOE_HOME/demo``; returns the folder."""
    from flows.reporting.charts import specialist_losses

    folder = home() / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "summary.json", json.dumps(result, indent=1) + "\n")
    specialist_losses(result["specialist_sets"]).savefig(folder / "plot.png", dpi=130)
    return folder


def show(result: dict[str, Any], console: Console) -> None:
    """Print the table, and in one sentence whether the soup was worth it."""
    table = Table(title="Loss on held-out text, nats per token (less is better)", box=None, pad_edge=False)
    table.add_column("specialist set")
    table.add_column("source")
    for column in ("generic twin", "specialist", "difference"):
        table.add_column(column, justify="right")
    for row in sorted(result["specialist_sets"], key=lambda row: row["soup_loss"] - row["generic_loss"]):
        table.add_row(row["name"], "unseen" if row["unseen_source"] else "seen", *_losses(row))
    table.add_section()
    for kind in ("seen", "unseen"):
        if result[kind]:
            table.add_row(f"mean of {kind} sources", kind, *_losses(result[kind]))
    table.add_row("mean of the sets", "", *_losses(result["mean"]))
    table.add_row("all domains together", "", *_losses(result["generic_mixture"]))
    console.print(table)
    seconds, stages = result["train_seconds"], result["stage_seconds"]
    console.print(
        f"Both saw {result['tokens']:,} tokens: the soup in {seconds['soup']:.0f} s, "
        f"the twin in {seconds['generic']:.0f} s."
    )
    console.print("The store: " + ", ".join(f"{name} {stages[name]:.0f} s" for name in STAGES) + ".")
    console.print(verdict(result), style="bold")
    if line := gained(result):
        console.print(line)


def verdict(result: dict[str, Any]) -> str:
    """One sentence: is the soup's mean specialist loss lower than the twin's, equal or higher?"""
    generic, soup = result["mean"]["generic_loss"], result["mean"]["soup_loss"]
    sets = result["specialist_sets"]
    better = sum(row["soup_loss"] < row["generic_loss"] for row in sets)
    how = f"{soup:.3f} against {generic:.3f} nats per token, lower on {better} of {len(sets)} sets"
    word = "LOWER than" if soup < generic else "HIGHER than" if soup > generic else "the same as"
    worth = "worth" if soup < generic else "not worth"
    return f"The soup was {worth} it: its specialists' mean loss is {word} the generic twin's ({how})."


def gained(result: dict[str, Any]) -> str | None:
    """What the specialists gain over the soup's own generic instance, if that was measured."""
    sets = [row for row in result["specialist_sets"] if "soup_generic_instance_loss" in row]
    if not sets:
        return None
    mean = sum(row["soup_generic_instance_loss"] - row["soup_loss"] for row in sets) / len(sets)
    surely = sum(row.get("gain_low", 0) > 0 for row in sets)
    itself = sum(row.get("share") == 0 and not row.get("refining_steps") for row in sets)
    return (
        f"Over the soup's own generic instance they gain {mean:+.3f} on the mean, surely on {surely} of {len(sets)} "
        f"sets; on the rest the generic model may do as well ({itself} were made as it)."
    )


def _mean(sets: list[dict[str, Any]]) -> dict[str, float] | None:
    return {key: sum(row[key] for row in sets) / len(sets) for key in LOSSES} if sets else None


def _losses(row: dict[str, Any]) -> list[str]:
    generic, soup = row["generic_loss"], row["soup_loss"]
    return [f"{generic:.3f}", f"{soup:.3f}", f"{soup - generic:+.3f}"]


def _summary(name: str) -> dict[str, Any]:
    summary = summary_of(run_folder(name))
    if not summary:
        raise UserError(
            f"{run_folder(name)} has no summary.json, which says how long {name} trained. Remove {soup_folder(name)} "
            "too, and run `soe demo` again: it trains it anew."
        )
    return summary
