"""The commands for specialists: ``soe specialize | materialize | verify | blend | score | export | serve``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from flows.cli.options import Folder, OfSoup, Soup, Texts, with_settings
from flows.settings import Specialize
from storage_schema.errors import UserError

app = typer.Typer()
OF_TEXTS = ("max_texts", "text_field", "source_field")


@app.command()
@with_settings(
    Specialize,
    "method", "rule", "max_texts", "text_field", "source_field", "evaluation_passages", "compare_with",
    "learning_steps", "learning_rate", "replay_store", "replay_share", "rebuild",
)  # fmt: skip
def specialize(soup: Soup, *, texts: Texts, out: Folder, given: dict[str, Any]) -> int:
    """A few texts become a small stand-alone model."""
    from flows.cli.specialist_report import show
    from flows.jobs.specialize import run_here
    from storage_schema.manifest import read_manifest

    folder = Path(out).expanduser().absolute()
    source = texts if "://" in texts else str(Path(texts).absolute())
    settings = Specialize(soup=soup, texts={folder.name: source}, output=str(folder.parent), **given)
    run_here(settings, together=False)
    show(folder, read_manifest(folder, "specialist"))
    return 0


@app.command()
def materialize(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE", help="A specialist.json, or a folder that holds one.", show_default=False
        ),
    ],
    *,
    soup: OfSoup,
    out: Folder,
) -> int:
    """Make a specialist again from its recipe."""
    from soe_model.specialists import specialist_files
    from soe_model.specialists.recipe import read_recipe

    read = read_recipe(recipe)
    specialist_files.materialize(read, _open(soup), Path(out))
    print(f"{Path(out)}: made again{'; its tensors are the ones the recipe names' if read.tensors else ''}.")
    return 0


@app.command()
def verify(
    specialist: Annotated[str, typer.Argument(metavar="SPECIALIST", help="Its folder.", show_default=False)],
    *,
    soup: OfSoup,
) -> int:
    """Recompute a specialist and compare every bit."""
    from soe_model.specialists.verification import verify_specialist

    found = verify_specialist(specialist, _open(soup))
    for problem in found.problems:
        print(problem, file=sys.stderr)
    if found.problems:
        return 1
    print(
        f"{specialist}: {found.tensors} tensors, {found.parameters:,} parameters, "
        "each bit as the soup and the recipe give it."
    )
    return 0


class _ManyShares(TyperCommand):
    """``--shares 3 1`` is read as ``--shares 3 --shares 1``: typer's options take one value each."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        spread: list[str] = []
        in_shares = False
        for word in args:
            if word.startswith("-"):
                in_shares = word.partition("=")[0] == "--shares"
            elif in_shares and spread[-1] != "--shares":
                spread.append("--shares")
            spread.append(word)
        return super().parse_args(ctx, spread)


@app.command(cls=_ManyShares)
def blend(
    recipes: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPES", help="Folders or specialist.json files, two or more.", show_default=False
        ),
    ],
    *,
    soup: OfSoup,
    shares: Annotated[
        list[float] | None, typer.Option(help="Of each, one after the other; equal, unless given.")
    ] = None,
    of: Annotated[
        Literal["coefficients", "domain-weights"],
        typer.Option(
            help="coefficients: the mean of the models; domain-weights: the model of the mean mixture, another one, "
            "and without the steps that refined ones took."
        ),
    ] = "coefficients",
    out: Folder,
) -> int:
    """Average specialists of one soup."""
    from soe_model.specialists import averaging, recipe
    from soe_model.specialists.specialist_files import materialize

    opened = _open(soup)
    read = [recipe.read_recipe(path) for path in recipes]
    what = recipe.BLEND_COEFFICIENTS if of == "coefficients" else recipe.BLEND_DOMAIN_WEIGHTS
    blended = averaging.blend(read, shares or [1.0] * len(read), opened, of=what)
    materialize(blended, opened, Path(out))
    print(f"{out}: {what} of {len(read)} specialists.")
    return 0


@app.command()
@with_settings(Specialize, *OF_TEXTS)
def score(
    soup: Soup,
    *,
    mixtures: Annotated[
        str, typer.Option(metavar="CSV", help="A ratios.csv, a mixture per row.", show_default=False)
    ],
    texts: Annotated[
        list[str], typer.Option(metavar="NAME=PATH", help="May be repeated.", show_default=False)
    ],
    out: Annotated[
        str, typer.Option(metavar="DIR", help="Receives ratios.csv and metrics.csv.", show_default=False)
    ],
    given: dict[str, Any],
) -> int:
    """Losses of many mixtures on texts, without training or writing any."""
    from flows.specialists.score_mixtures import score_mixtures

    sets = {}
    for one in texts:
        name, equals, path = one.partition("=")
        if not equals or not name or not path:
            raise UserError(f"--texts is {one!r}; give NAME=PATH, such as notes=/data/notes.")
        sets[name] = path
    chosen = Specialize(**given).model_dump(include=set(OF_TEXTS))
    table = score_mixtures(soup, mixtures, sets, Path(out), **chosen)
    print(f"{out}: losses of {len(table)} mixtures on {len(sets)} sets of texts.")
    return 0


@app.command()
def export(
    tool: Annotated[
        Literal["mergekit", "peft"],
        typer.Argument(metavar="TOOL", help="mergekit or peft.", show_default=False),
    ],
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE", help="The specialist's folder, or its specialist.json.", show_default=False
        ),
    ],
    *,
    soup: OfSoup,
    out: Folder,
) -> int:
    """Write a specialist for another tool."""
    from soe_model.specialists.recipe import read_recipe

    opened, read, folder = _open(soup), read_recipe(recipe), Path(out)
    if tool == "mergekit":
        from soe_model.exports.mergekit import write_mergekit

        write_mergekit(opened, read, folder)
    else:
        from soe_model.exports.peft import write_peft

        write_peft(opened, read, folder)
    print(f"{folder}: written for {tool}.")
    return 0


@app.command()
def serve(
    soup: Soup,
    *,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any that is free.")] = 8300,
    token_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="Where the token lies; made if it is not there.")
    ] = None,
    cache: Annotated[int, typer.Option(help="Models kept in memory.")] = 4,
    max_queue: Annotated[int, typer.Option(help="Requests that may wait.")] = 64,
    method: Annotated[
        Literal["refined", "blended", "nearest-centroids"],
        typer.Option(help="refined: where each text is a document of its own; it takes some seconds more."),
    ] = "blended",
) -> int:
    """A local page and an OpenAI-style service that makes specialists."""
    from flows.serving.server import main

    return main(
        soup,
        host=host,
        port=port,
        token_file=token_file,
        cache=cache,
        max_queue=max_queue,
        method=method,
    )


def _open(soup: str) -> Any:
    from flows.specialists.soups import soup_to_read
    from soe_model.files.soup import SoupOfExperts

    return SoupOfExperts.open(soup_to_read(soup))
