"""The ``soe`` command. Each subcommand imports what it needs, so that the command itself starts at once."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from flows.cli import specialists as specialist_commands


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and run the subcommand; returns the exit code."""
    arguments = _parser().parse_args(argv)
    from flows.errors import in_one_line

    return in_one_line(lambda: arguments.command(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="soe", description="Soup-of-Experts: from a corpus to specialists.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    up = commands.add_parser("up", help="start the Prefect server, its worker and the Ray cluster")
    up.add_argument("--prefect-port", type=_port, help="Prefect's API and UI (4200)")
    up.add_argument("--dashboard-port", type=_port, help="Ray's dashboard and job API (8265)")
    up.add_argument("--ray-port", type=_port, help="Ray itself (6379)")
    up.add_argument(
        "--metrics",
        action=argparse.BooleanOptionalAction,
        help="with a Prometheus that scrapes Ray; as last time, unless given",
    )
    up.add_argument("--metrics-port", type=_port, help="Prometheus (9190)")
    up.set_defaults(command=_up)
    commands.add_parser("status", help="what runs, and where to look").set_defaults(command=_status)
    logs = commands.add_parser("logs", help="the log of a flow run, or of a component of the stack")
    logs.add_argument(
        "what",
        nargs="?",
        help="name or id of a flow run (the newest), or prefect-server, prefect-worker, ray-head, prometheus",
    )
    logs.add_argument("-n", "--lines", type=_count, default=50, help="from the end (50)")
    logs.add_argument("-f", "--follow", action="store_true", help="go on as lines come")
    logs.set_defaults(command=_logs)
    commands.add_parser("down", help="stop it all").set_defaults(command=_down)
    commands.add_parser("doctor", help="what is installed, what will be used, what is wrong").set_defaults(
        command=_doctor
    )
    commands.add_parser("demo", help="build, pretrain, specialize and compare, on this machine").set_defaults(
        command=_demo
    )

    atlas = commands.add_parser(
        "atlas", help="draw a store's domains as one HTML page, and a specialist's h on it"
    )
    atlas.add_argument("store", help="name or path of the store")
    atlas.add_argument(
        "--specialist", metavar="FOLDER", help="name or path of a specialist, or a folder of some"
    )
    atlas.add_argument("--out", metavar="FILE", help="the page; by default it lies in the store's folder")
    atlas.set_defaults(command=_atlas)

    audit = commands.add_parser("audit", help="read a whole store again and check every byte and passage")
    audit.add_argument("store", help="name or path of the store")
    audit.set_defaults(command=_audit)

    ratios = commands.add_parser(
        "ratios", help="write the mixtures of a pretraining run as a table (ratios.csv)"
    )
    ratios.add_argument("run", help="name of the run")
    ratios.add_argument("--steps", type=_steps, metavar="FIRST:STOP", help="all of the run's, unless given")
    ratios.add_argument("--out", metavar="FILE", default="ratios.csv")
    ratios.set_defaults(command=_ratios)

    _add_plan(commands)
    specialist_commands.add_commands(commands)

    run = commands.add_parser("run", help="run a deployment, follow it, and fail if it fails")
    run.add_argument(
        "name", help="build-domains, add-documents, pretrain-soe, specialize; or FLOW/DEPLOYMENT"
    )
    run.add_argument("--config", type=_json_object, default={}, help="the settings, as a JSON object")
    run.add_argument(
        "--param",
        type=_setting,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="one setting of them",
    )
    run.add_argument("--no-watch", action="store_true", help="return as soon as the run is scheduled")
    run.set_defaults(command=_run)
    return parser


def _add_plan(commands: argparse._SubParsersAction) -> None:
    plan = commands.add_parser("plan", help="memory, disk and time of a pretraining run, before it starts")
    plan.add_argument(
        "--preset", default="tiny", help="tiny, small, paper-35m, paper-55m, paper-110m, paper-335m"
    )
    plan.add_argument(
        "--backbone", metavar="FILE", help="a Hugging Face config.json, instead of the preset's"
    )
    plan.add_argument("--vocab-size", type=_count, default=32_000)
    plan.add_argument("--num-domains", type=_count, default=4096)
    plan.add_argument("--num-experts", type=int, help="0 is the generic twin")
    plan.add_argument("--expert-rank", type=_count, help="low-rank experts")
    plan.add_argument("--optimizer", help="of the experts; adam, unless given")
    for name in ("batch-size", "sequence-length", "mixtures-per-step", "micro-batch-size"):
        plan.add_argument(f"--{name}", type=_count)
    plan.add_argument("--compile-model", action="store_true", default=None)
    plan.add_argument("--device", default="cpu", help="A100-40, A100-80, H100, H200; cpu: this machine")
    plan.add_argument("--num-workers", type=_count, default=1)
    plan.add_argument("--bandwidth", type=_positive, metavar="GB/S", help="that a copy in memory reaches")
    plan.add_argument("--peak", type=_positive, metavar="TFLOP/S", help="of the device")
    plan.add_argument("--mfu", type=_positive, help="share of the peak that training reaches")
    plan.set_defaults(command=_plan)


def _count(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def _port(text: str) -> int:
    if not text.isdigit() or not 1024 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: give a number from 1024 to 65535")
    return int(text)


def _steps(text: str) -> tuple[int, int]:
    first, colon, stop = text.partition(":")
    if not (colon and first.isdigit() and stop.isdigit() and int(first) < int(stop)):
        raise argparse.ArgumentTypeError(f"{text!r} is not FIRST:STOP, such as 0:1000")
    return int(first), int(stop)


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object: give " + '{"name": value, ...}')
    return value


def _setting(text: str) -> tuple[str, Any]:
    """``name=value``; the value is JSON where it can be read as such, else the text itself."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _up(arguments: argparse.Namespace) -> int:
    from flows.cli import stack_status as status_view

    return status_view.up(
        prefect_port=arguments.prefect_port,
        dashboard_port=arguments.dashboard_port,
        ray_port=arguments.ray_port,
        metrics=arguments.metrics,
        metrics_port=arguments.metrics_port,
    )


def _status(arguments: argparse.Namespace) -> int:
    from flows.cli import stack_status as status_view

    return status_view.status()


def _logs(arguments: argparse.Namespace) -> int:
    from flows.cli import logs as logs_view

    return logs_view.show(arguments.what, lines=arguments.lines, follow=arguments.follow)


def _down(arguments: argparse.Namespace) -> int:
    from flows.cli import stack_status as status_view

    return status_view.down()


def _doctor(arguments: argparse.Namespace) -> int:
    from flows.cli import doctor

    return doctor.main()


def _demo(arguments: argparse.Namespace) -> int:
    from flows.cli import demo

    return demo.main()


def _atlas(arguments: argparse.Namespace) -> int:
    from flows.atlas.page import write_atlas
    from storage_schema.layout import specialist_folder, store_folder

    chosen = arguments.specialist
    path = write_atlas(
        store_folder(arguments.store),
        specialists=specialist_folder(chosen) if chosen else None,
        out=arguments.out,
    )
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB): open it in a browser.")
    return 0


def _audit(arguments: argparse.Namespace) -> int:
    from flows.reporting.progress import progress
    from pipeline.reports.audit import audit_store
    from storage_schema.layout import store_folder

    with progress("audit", "files and domains") as report:
        checked = audit_store(store_folder(arguments.store), report=report)
    print(", ".join(f"{number:,} {name}" for name, number in checked.items()) + ": all as they were written.")
    return 0


def _ratios(arguments: argparse.Namespace) -> int:
    from flows.training.resolve_run import stream_of_run
    from pipeline.mixtures.ratios import write_ratios

    stream, steps = stream_of_run(arguments.run)
    first, stop = arguments.steps or (0, steps)
    write_ratios(stream.plan, first, stop, arguments.out)
    print(f"{arguments.out}: the mixtures of {stop - first} steps.")
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    from flows.cli import plan

    return plan.main(arguments)


def _run(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from flows.cli.follow_run import follow, outcome
    from flows.prefect_client.api import PrefectApi

    console = Console(highlight=False, soft_wrap=True)
    name = arguments.name if "/" in arguments.name else f"{arguments.name}/{arguments.name}"
    config = arguments.config | dict(arguments.param)
    api = PrefectApi.of_active_profile()
    run = api.create_flow_run(name, {"config": config} if config else {})
    print(f"{name}: flow run {run['name']} ({run['id']})", flush=True)
    if arguments.no_watch:
        return 0
    problem = outcome(follow(api, run["id"], console=console))
    if problem:
        print(problem, file=sys.stderr)
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
