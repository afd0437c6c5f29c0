"""The commands of pretraining and of deployments: ``soe plan | ratios | compare | run``."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from flows.cli.options import Store, default_of, json_object, positive, setting, steps, with_settings
from flows.settings import BuildDomains, CompareMethods, Pretrain

app = typer.Typer()


@app.command()
@with_settings(
    Pretrain,
    "preset", "expert_rank", "optimizer", "batch_size", "sequence_length", "mixtures_per_step", "micro_batch_size",
    "compile_model", "train_generic", "num_workers",
)  # fmt: skip
def plan(
    *,
    backbone: Annotated[
        str | None, typer.Option(metavar="FILE", help="A Hugging Face config.json, instead of the preset's.")
    ] = None,
    vocab_size: Annotated[int, typer.Option(min=1)] = default_of(BuildDomains, "vocab_size"),
    num_domains: Annotated[int, typer.Option(min=1)] = default_of(BuildDomains, "coarse_clusters")
    * default_of(BuildDomains, "leaf_clusters"),
    num_experts: Annotated[int | None, typer.Option(min=0, help="0 is the generic twin.")] = None,
    device: Annotated[str, typer.Option(help="A100-40, A100-80, H100, H200; cpu: this machine.")] = "cpu",
    bandwidth: Annotated[
        float | None, typer.Option(parser=positive, metavar="GB/S", help="That a copy in memory reaches.")
    ] = None,
    peak: Annotated[
        float | None, typer.Option(parser=positive, metavar="TFLOP/S", help="Of the device.")
    ] = None,
    mfu: Annotated[
        float | None, typer.Option(parser=positive, help="Share of the peak that training reaches.")
    ] = None,
    given: dict[str, Any],
) -> int:
    """Memory, disk and time of a pretraining run, before it starts."""
    from flows.cli import plan as planning

    settings, store = planning.settings_of(
        given, num_experts=num_experts, backbone=backbone, vocab_size=vocab_size, num_domains=num_domains
    )
    return planning.main(settings, store, device=device, bandwidth=bandwidth, peak=peak, mfu=mfu)


@app.command()
def ratios(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Name of the run.", show_default=False)],
    *,
    chosen: Annotated[
        Any,
        typer.Option("--steps", parser=steps, metavar="FIRST:STOP", help="All of the run's, unless given."),
    ] = None,
    out: Annotated[str, typer.Option(metavar="FILE", help="The table to write.")] = "ratios.csv",
) -> int:
    """Write the mixtures of a pretraining run as a table (ratios.csv)."""
    from flows.training.resolve_run import stream_of_run
    from pipeline.mixtures.ratios import write_ratios

    stream, of_run = stream_of_run(run)
    first, stop = chosen or (0, of_run)
    write_ratios(stream.plan, first, stop, out)
    print(f"{out}: the mixtures of {stop - first} steps.")
    return 0


@app.command()
@with_settings(
    CompareMethods, "name", "size", "methods", "preset", "seeds", "tokens", "hours", "groups", "max_sets",
    "evaluation_passages", "points",
)  # fmt: skip
def compare(store: Store, *, given: dict[str, Any]) -> int:
    """Compare the methods on a store, without a stack, and write a page on which to choose."""
    from flows.jobs.compare_methods import run as compare_methods

    done = compare_methods(CompareMethods(store=store, **given))
    print(done["page"])
    return 0


@app.command()
def run(
    name: Annotated[
        str,
        typer.Argument(
            help="build-domains, add-documents, pretrain-soe, specialize, compare-methods; or FLOW/DEPLOYMENT.",
            show_default=False,
        ),
    ],
    *,
    config: Annotated[
        Any, typer.Option(parser=json_object, metavar="JSON", help="The settings, as a JSON object.")
    ] = None,
    param: Annotated[
        list[Any] | None,
        typer.Option(parser=setting, metavar="NAME=VALUE", help="One setting; may be repeated."),
    ] = None,
    no_watch: Annotated[
        bool, typer.Option("--no-watch", help="Return as soon as the run is scheduled.")
    ] = False,
) -> int:
    """Run a deployment, follow it, and fail if it fails."""
    from rich.console import Console

    from flows.cli.follow_run import follow, outcome
    from flows.prefect_client.api import PrefectApi

    console = Console(highlight=False, soft_wrap=True)
    name = name if "/" in name else f"{name}/{name}"
    settings = (config or {}) | dict(param or [])
    api = PrefectApi.of_active_profile()
    started = api.create_flow_run(name, {"config": settings} if settings else {})
    print(f"{name}: flow run {started['name']} ({started['id']})", flush=True)
    if no_watch:
        return 0
    problem = outcome(follow(api, started["id"], console=console))
    if problem:
        print(problem, file=sys.stderr)
    return 1 if problem else 0
