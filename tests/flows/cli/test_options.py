"""Options of the ``soe`` command that are fields of a settings model, and texts that are read as values."""

from __future__ import annotations

import inspect
from typing import Literal

import pytest
import typer
from pydantic import Field

from flows.cli.options import setting, with_settings
from flows.settings import Settings


class Cake(Settings):
    layers: int = Field(3, ge=1, lt=10, description="One above the other.")
    sugar: float | None = Field(None, gt=0, allow_inf_nan=False)
    glaze: Literal["plain", "lemon"] = "plain"
    candles: bool = Field(False, description="On top.")


@pytest.fixture()
def bake():
    """Runs a command line; what the command was given, or its exit code."""
    app = typer.Typer(rich_markup_mode=None)
    given_to = {}

    @app.command()
    @with_settings(Cake, "layers", "sugar", "glaze", "candles")
    def cake(name: str, *, given: dict) -> int:
        given_to.update(given, name=name)
        return 0

    def run(*arguments):
        given_to.clear()
        try:
            app(list(arguments), prog_name="bake")
        except SystemExit as ended:
            return given_to if ended.code == 0 else ended.code

    run.command = cake
    return run


def test_only_what_is_on_the_command_line_is_given(bake):
    assert bake("pie") == {"name": "pie"}
    everything = ["--layers", "3", "--sugar", "0.5", "--glaze", "lemon", "--candles"]
    expected = {"name": "pie", "layers": 3, "sugar": 0.5, "glaze": "lemon", "candles": True}
    assert bake("pie", *everything) == expected


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--layers", "0", "'--layers': Input should be greater than or equal to 1 (got '0')"),
        ("--layers", "10", "less than 10"),
        ("--layers", "many", "valid integer"),
        ("--sugar", "0", "greater than 0"),
        ("--sugar", "inf", "finite"),
        ("--glaze", "mint", "'plain', 'lemon'"),
        ("--no-candles", "", "--no-candles"),
    ],
)
def test_a_value_that_the_model_refuses_is_a_usage_error(bake, option, value, said, capsys):
    assert bake("pie", option, value) == 2
    assert said in capsys.readouterr().err


def test_the_help_has_the_models_words_defaults_and_bounds(bake, capsys):
    bake("--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "--layers <int> One above the other. [default: 3; x>=1; x<10]" in shown
    assert "--sugar <float> [x>0]" in shown and "<plain|lemon> [default: plain]" in shown
    assert "--candles On top." in shown
    assert "given" not in inspect.signature(bake.command).parameters


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=1", ("a", 1)),
        ("a=x", ("a", "x")),
        ("a=x=y", ("a", "x=y")),
        ('a=["b"]', ("a", ["b"])),
        ("a=", ("a", "")),
        ("a=null", ("a", None)),
    ],
)
def test_a_settings_value_is_json_or_text(text, value):
    assert setting(text) == value
