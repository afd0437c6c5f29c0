"""The ``soe`` command. Each subcommand imports what it needs, so that the command itself starts at once."""

from __future__ import annotations

import sys

import typer

from flows.cli import run_commands, specialist_commands, stack_commands, store_commands
from flows.errors import in_one_line


def _end(code: int) -> None:
    raise typer.Exit(code)


app = typer.Typer(
    help="Soup-of-Experts: from a corpus to specialists.",
    add_completion=False,
    rich_markup_mode=None,  # plain text, without the import of rich
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
    result_callback=_end,
)
for group in (stack_commands, store_commands, run_commands, specialist_commands):
    app.add_typer(group.app)


@app.callback()
def _soe() -> None:
    """Without it typer has no group to which the result's callback belongs."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line `arguments` (those of the process unless given); returns the exit code.

    0: done; 1: the user can mend it, as one line on stderr says; 2: a wrong command line. A fault is raised.
    """
    try:
        return in_one_line(lambda: app(arguments, prog_name="soe"))
    except SystemExit as ended:  # as typer ends every command
        return ended.code if isinstance(ended.code, int) else 1


if __name__ == "__main__":
    sys.exit(main())
