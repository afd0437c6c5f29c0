"""The commands of a store: ``soe atlas | audit | weights``."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from flows.cli.options import Store, Texts, with_settings
from flows.settings import Specialize

app = typer.Typer()
OF_WEIGHTS = ("rule", "max_texts", "text_field", "source_field")


@app.command()
def atlas(
    store: Store,
    *,
    specialist: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Name or path of a specialist, or a folder of some.")
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="FILE", help="The page; in the store's folder, unless given.")
    ] = None,
) -> int:
    """Draw a store's domains as one HTML page, and a specialist's h on it."""
    from flows.atlas.page import write_atlas
    from storage_schema.layout import specialist_folder, store_folder

    path = write_atlas(
        store_folder(store), specialists=specialist_folder(specialist) if specialist else None, out=out
    )
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB): open it in a browser.")
    return 0


@app.command()
def audit(store: Store) -> int:
    """Read a whole store again and check every byte and passage."""
    from flows.reporting.progress import progress
    from pipeline.reports.audit import audit_store
    from storage_schema.layout import store_folder

    with progress("audit", "files and domains") as report:
        checked = audit_store(store_folder(store), report=report)
    print(", ".join(f"{number:,} {name}" for name, number in checked.items()) + ": all as they were written.")
    return 0


@app.command()
@with_settings(Specialize, *OF_WEIGHTS)
def weights(
    store: Store,
    *,
    texts: Texts,
    out: Annotated[str, typer.Option(metavar="FILE", help="The table to write.")] = "ratios.csv",
    given: dict[str, Any],
) -> int:
    """Where a few texts fall among a store's domains, as a table of one mixture."""
    from flows.specialists.weigh_texts import write_domain_weights

    chosen = Specialize(**given).model_dump(include=set(OF_WEIGHTS))
    found = write_domain_weights(store, texts, out, **chosen)
    for note in [*found.pop("notes"), *found.pop("warnings", [])]:
        print(note, file=sys.stderr)
    print(f"{out}: {found['count']} passages in {found['domains']} domains.")
    return 0
