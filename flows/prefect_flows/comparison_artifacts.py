"""What the Prefect UI shows of a finished comparison: the answer, the table, and where the page lies."""

from __future__ import annotations

from typing import Any

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from flows.reporting.artifact_text import artifact_key
from flows.settings import CompareMethods
from storage_schema.json_files import read_object
from storage_schema.layout import COMPARISON_PAGE, COMPARISON_RESULTS, comparison_folder


def publish_comparison(config: CompareMethods) -> None:
    """A card with the answer, a table with a row for each method, and a link to the page."""
    folder = comparison_folder(config.name)
    report = read_object(folder / COMPARISON_RESULTS)
    key, page = artifact_key("comparison", folder.name), folder / COMPARISON_PAGE
    card = [f"# Methods compared: {report['name']}", *report["answer"], f"The page: `{page}`, one file."]
    create_markdown_artifact("\n\n".join(card), key=key, description="The answer.")
    create_table_artifact(
        [table_row(row) for row in report["rows"]],
        key=f"{key}-table",
        description="Nats per token, mean over sets and seeds; less is better.",
    )
    create_link_artifact(
        page.as_uri(),
        link_text=str(page),
        key=f"{key}-page",
        description=f"Open `{page}` in a browser on the machine where it lies, or copy it: it is one file.",
    )


def table_row(row: dict[str, Any]) -> dict[str, Any]:
    """A method's mean losses and main costs."""
    losses = {kind: round(loss["mean"], 4) for kind, loss in row.get("losses", {}).items() if loss}
    costs = {name: row.get(name, "") for name in ("tokens", "flops", "stored", "served")}
    return {
        "method": row["method"],
        "seeds": row["seeds"],
        **losses,
        **costs,
        "notes": " ".join(row["notes"]),
    }
