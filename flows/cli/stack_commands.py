"""The commands of the local stack: ``soe up | status | logs | down | doctor | demo``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

app = typer.Typer()


def _port(of: str) -> Any:
    return typer.Option(min=1024, max=65535, help=of)


@app.command()
def up(
    *,
    prefect_port: Annotated[int | None, _port("Prefect's API and UI (4200).")] = None,
    dashboard_port: Annotated[int | None, _port("Ray's dashboard and job API (8265).")] = None,
    ray_port: Annotated[int | None, _port("Ray itself (6379).")] = None,
    metrics: Annotated[
        bool | None, typer.Option(help="With a Prometheus that scrapes Ray; as last time, unless given.")
    ] = None,
    metrics_port: Annotated[int | None, _port("Prometheus (9190).")] = None,
) -> int:
    """Start the Prefect server, its worker and the Ray cluster."""
    from flows.cli import stack_status

    return stack_status.up(
        prefect_port=prefect_port,
        dashboard_port=dashboard_port,
        ray_port=ray_port,
        metrics=metrics,
        metrics_port=metrics_port,
    )


@app.command()
def status() -> int:
    """What runs, and where to look."""
    from flows.cli import stack_status

    return stack_status.status()


@app.command()
def logs(
    what: Annotated[
        str | None,
        typer.Argument(
            help="Name or id of a flow run (the newest, unless given), or prefect-server, prefect-worker, ray-head, "
            "prometheus."
        ),
    ] = None,
    *,
    lines: Annotated[int, typer.Option("-n", "--lines", min=1, help="How many, from the end.")] = 50,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as lines come.")] = False,
) -> int:
    """The log of a flow run, or of a component of the stack."""
    from flows.cli.logs import show

    return show(what, lines=lines, follow=follow)


@app.command()
def down() -> int:
    """Stop it all."""
    from flows.cli import stack_status

    return stack_status.down()


@app.command()
def doctor() -> int:
    """What is installed, what will be used, what is wrong."""
    from flows.cli.doctor import main

    return main()


@app.command()
def demo() -> int:
    """Build, pretrain, specialize and compare, on this machine."""
    from flows.cli.demo import main

    return main()
