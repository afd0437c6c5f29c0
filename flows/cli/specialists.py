"""The commands for specialists: ``soe weights | specialize | materialize | verify | blend | score | export |
serve``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, get_args

from flows.settings import SpecialistMethod
from storage_schema.errors import UserError

METHODS = get_args(SpecialistMethod)


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the subcommands to those of ``soe``."""
    weights = commands.add_parser(
        "weights", help="where a few texts fall among a store's domains, as a table of one mixture"
    )
    weights.add_argument("store", help="name or path of the store")
    weights.add_argument("--texts", required=True, metavar="PATH", help="a file or folder of texts")
    weights.add_argument("--rule", choices=("flat", "tree"), default="flat")
    weights.add_argument("--max-texts", type=int, default=200, help="passages that are taken (200)")
    _add_fields(weights)
    weights.add_argument("--out", metavar="FILE", default="ratios.csv")
    weights.set_defaults(command=_weights)

    make = commands.add_parser("specialize", help="a few texts become a small stand-alone model")
    make.add_argument("soup", help="name or path of the soup")
    make.add_argument("--texts", required=True, metavar="PATH", help="a file or folder of texts")
    make.add_argument("--out", required=True, metavar="DIR", help="the model's folder")
    make.add_argument("--method", choices=METHODS, default=METHODS[0])
    make.add_argument("--rule", choices=("flat", "tree"), default="flat")
    make.add_argument("--max-texts", type=int, default=200, help="passages that are taken (200)")
    _add_fields(make)
    make.add_argument("--evaluation-passages", type=int, help="kept apart to measure on; 0: none")
    make.add_argument("--compare-with", metavar="TWIN", help="a generic twin, to measure beside")
    make.add_argument("--learning-steps", type=int, default=100)
    make.add_argument("--learning-rate", type=float)
    make.add_argument("--replay-store", metavar="STORE", help="fine-tuned: text to replay")
    make.add_argument("--replay-share", type=float, default=0.0, help="fine-tuned: share of each batch")
    make.add_argument("--rebuild", action="store_true", help="replace another specialist in --out")
    make.set_defaults(command=_specialize)

    again = commands.add_parser("materialize", help="make a specialist again from its recipe")
    again.add_argument("recipe", help="a specialist.json, or a folder that holds one")
    again.add_argument("--soup", required=True)
    again.add_argument("--out", required=True, metavar="DIR")
    again.set_defaults(command=_materialize)

    verify = commands.add_parser("verify", help="recompute a specialist and compare every bit")
    verify.add_argument("specialist", help="its folder")
    verify.add_argument("--soup", required=True)
    verify.set_defaults(command=_verify)

    blend = commands.add_parser("blend", help="average specialists of one soup")
    blend.add_argument("recipes", nargs="+", help="folders or specialist.json files, two or more")
    blend.add_argument("--soup", required=True)
    blend.add_argument("--shares", nargs="+", type=float, help="of each; equal, unless given")
    blend.add_argument(
        "--of",
        choices=("coefficients", "domain-weights"),
        default="coefficients",
        help="coefficients: the mean of the models; domain-weights: the model of the mean mixture, another one",
    )
    blend.add_argument("--out", required=True, metavar="DIR")
    blend.set_defaults(command=_blend)

    score = commands.add_parser(
        "score", help="losses of many mixtures on texts, without training or writing any"
    )
    score.add_argument("soup")
    score.add_argument("--mixtures", required=True, metavar="CSV", help="a ratios.csv, a mixture a row")
    score.add_argument("--texts", required=True, action="append", metavar="NAME=PATH", help="may be repeated")
    score.add_argument("--max-texts", type=int, default=200)
    _add_fields(score)
    score.add_argument("--out", required=True, metavar="DIR", help="receives ratios.csv and metrics.csv")
    score.set_defaults(command=_score)

    export = commands.add_parser("export", help="write a specialist for another tool")
    export.add_argument("tool", choices=("mergekit", "peft"))
    export.add_argument("recipe", help="the specialist's folder, or its specialist.json")
    export.add_argument("--soup", required=True)
    export.add_argument("--out", required=True, metavar="DIR")
    export.set_defaults(command=_export)

    serve = commands.add_parser(
        "serve", help="a local page and an OpenAI-style service that makes specialists"
    )
    serve.add_argument("soup")
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument("--port", type=int, default=8300)
    serve.add_argument("--token-file", metavar="FILE", help="where the token lies; made if it is not there")
    serve.add_argument("--cache", type=int, default=4, help="models kept in memory (4)")
    serve.add_argument("--max-queue", type=int, default=64, help="requests that may wait (64)")
    serve.add_argument("--method", choices=METHODS[:2], default=METHODS[0], help="of those that do not train")
    serve.set_defaults(command=_serve)


def _add_fields(command: argparse.ArgumentParser) -> None:
    command.add_argument("--text-field", default="text", help="JSON lines and Parquet: the field of the text")
    command.add_argument("--source-field", default="source", help="and that of the source")


def _fields(arguments: argparse.Namespace) -> dict[str, str]:
    return {"text_field": arguments.text_field, "source_field": arguments.source_field}


def _weights(arguments: argparse.Namespace) -> int:
    from flows.specialists.weigh_texts import write_domain_weights

    found = write_domain_weights(
        arguments.store,
        arguments.texts,
        arguments.out,
        rule=arguments.rule,
        max_texts=arguments.max_texts,
        **_fields(arguments),
    )
    for note in found.pop("notes"):
        print(note, file=sys.stderr)
    for warning in found.pop("warnings", []):
        print(warning, file=sys.stderr)
    print(f"{arguments.out}: {found['count']} passages in {found['domains']} domains.")
    return 0


def _specialize(arguments: argparse.Namespace) -> int:
    from flows.cli.specialist_report import show
    from flows.jobs.specialize import run_here
    from flows.settings import Specialize
    from storage_schema.manifest import read_manifest

    out = Path(arguments.out).expanduser().absolute()
    settings = Specialize(
        soup=arguments.soup,
        texts={
            out.name: str(Path(arguments.texts).absolute())
            if "://" not in arguments.texts
            else arguments.texts
        },
        output=str(out.parent),
        method=arguments.method,
        rule=arguments.rule,
        max_texts=arguments.max_texts,
        **_fields(arguments),
        evaluation_passages=arguments.evaluation_passages,
        compare_with=arguments.compare_with,
        learning_steps=arguments.learning_steps,
        learning_rate=arguments.learning_rate,
        replay_store=arguments.replay_store,
        replay_share=arguments.replay_share,
        rebuild=arguments.rebuild,
    )
    run_here(settings, together=False)
    show(out, read_manifest(out, "specialist"))
    return 0


def _materialize(arguments: argparse.Namespace) -> int:
    from soe_model.specialists.recipe import read_recipe
    from soe_model.specialists.specialist_files import materialize

    out = Path(arguments.out)
    recipe = read_recipe(arguments.recipe)
    materialize(recipe, _soup(arguments.soup), out)
    print(f"{out}: made again{'; its tensors are the ones the recipe names' if recipe.tensors else ''}.")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from soe_model.specialists.specialist_files import verify_specialist

    found = verify_specialist(arguments.specialist, _soup(arguments.soup))
    for problem in found.problems:
        print(problem, file=sys.stderr)
    if found.problems:
        return 1
    print(
        f"{arguments.specialist}: {found.tensors} tensors, {found.parameters:,} parameters, "
        "each bit as the soup and the recipe give it."
    )
    return 0


def _blend(arguments: argparse.Namespace) -> int:
    from soe_model.specialists.recipe import BLEND_COEFFICIENTS, BLEND_DOMAIN_WEIGHTS, blend, read_recipe
    from soe_model.specialists.specialist_files import materialize

    soup = _soup(arguments.soup)
    recipes = [read_recipe(path) for path in arguments.recipes]
    of = BLEND_COEFFICIENTS if arguments.of == "coefficients" else BLEND_DOMAIN_WEIGHTS
    blended = blend(recipes, arguments.shares or [1.0] * len(recipes), soup, of=of)
    materialize(blended, soup, Path(arguments.out))
    print(f"{arguments.out}: {of} of {len(recipes)} specialists.")
    return 0


def _score(arguments: argparse.Namespace) -> int:
    from flows.specialists.score_mixtures import score_mixtures

    sets = {}
    for given in arguments.texts:
        name, equals, path = given.partition("=")
        if not equals or not name or not path:
            raise UserError(f"--texts is {given!r}; give NAME=PATH, such as notes=/data/notes.")
        sets[name] = path
    table = score_mixtures(
        arguments.soup,
        arguments.mixtures,
        sets,
        Path(arguments.out),
        max_texts=arguments.max_texts,
        **_fields(arguments),
    )
    print(f"{arguments.out}: losses of {len(table)} mixtures on {len(sets)} sets of texts.")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from soe_model.specialists.recipe import read_recipe

    soup, recipe, out = _soup(arguments.soup), read_recipe(arguments.recipe), Path(arguments.out)
    if arguments.tool == "mergekit":
        from soe_model.exports.mergekit import write_mergekit

        write_mergekit(soup, recipe, out)
    else:
        from soe_model.exports.peft import write_peft

        write_peft(soup, recipe, out)
    print(f"{out}: written for {arguments.tool}.")
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    from flows.serving.server import main

    return main(arguments)


def _soup(name: str) -> Any:
    from soe_model.files.soup import SoupOfExperts
    from storage_schema.layout import soup_folder

    return SoupOfExperts.open(soup_folder(name))
