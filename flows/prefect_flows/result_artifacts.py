"""What the Prefect UI shows of a training, and of the specialists of a run: pictures, tables, and how to go on."""

from __future__ import annotations

import shlex
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows.reporting import charts
from flows.reporting.artifact_text import artifact_key, markdown_table, number, run_key
from flows.settings import Pretrain, Specialize
from flows.training.run_log import read_log
from flows.training.run_record import summary_of
from storage_schema.json_files import read_object
from storage_schema.layout import (
    MADE,
    run_folder,
    soup_to_write,
    specialist_folder,
)
from storage_schema.manifest import read_manifest


def publish_soup(config: Pretrain) -> None:
    """The run's card: what was trained, on what, its loss curve, and the command that resumes it."""
    create_markdown_artifact(
        soup_card(config),
        key=run_key(config.method, config.name),
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


def soup_card(config: Pretrain) -> str:
    """Markdown: the run's settings, numbers, digests, loss curve, and the command that makes it again."""
    manifest = read_manifest(soup_to_write(config.name), "soup")
    summary = summary_of(run_folder(config.name))
    log = {row["step"]: row for row in read_log(run_folder(config.name))}
    inputs = [[f"{name} digest", f"`{digest}`"] for name, digest in manifest.inputs.items()]
    place = config.name if "://" in config.name else soup_to_write(config.name)
    rows = [[name.replace("_", " "), number(value)] for name, value in summary.items()]
    chosen = f'{{"config": {config.model_dump_json(exclude_defaults=True)}}}'
    command = ["prefect", "deployment", "run", "pretrain-soe", "--params", chosen]
    lines = [
        f"# {'Soup' if config.method == 'soup' else 'Generic twin'} {config.name}",
        *(charts.of_log([log[step] for step in sorted(log)]) if log else []),
        markdown_table(["", ""], [*rows, ["digest", f"`{manifest.digest}`"], *inputs]),
        f"In `{place}`; checkpoints and log in `{run_folder(config.name)}`." if log else f"In `{place}`.",
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
    numbers = [[name.replace("_", " "), number(value)] for name, value in newest.items()]
    return "\n\n".join(
        [
            f"# {'Soup' if config.method == 'soup' else 'Generic twin'} {config.name}, step {last['step']:,.0f}",
            *charts.of_log(rows),
            markdown_table(["", ""], numbers),
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


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}
