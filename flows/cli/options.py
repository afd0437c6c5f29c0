"""Options of the ``soe`` command: those that are fields of a settings model, and texts that are read as values."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from functools import wraps
from types import NoneType, UnionType
from typing import Annotated, Any, get_args

import typer
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from flows.settings import Settings

Command = Callable[..., int]
Store = Annotated[str, typer.Argument(metavar="STORE", help="Name or path of the store.", show_default=False)]
Soup = Annotated[
    str, typer.Argument(metavar="SOUP", help="Name, path or s3:// URI of the soup.", show_default=False)
]
OfSoup = Annotated[
    str, typer.Option("--soup", help="Name, path or s3:// URI of the soup.", show_default=False)
]
Texts = Annotated[str, typer.Option(metavar="PATH", help="A file or folder of texts.", show_default=False)]
Folder = Annotated[str, typer.Option("--out", metavar="DIR", help="The folder to write.", show_default=False)]
_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def with_settings(model: type[Settings], *names: str) -> Callable[[Command], Command]:
    """Give a command an option for each of these fields of `model`: its name, type, bounds, default and text.

    The command receives as `given` those that were on the command line, so that the model knows which they were.
    """

    def add(command: Command) -> Command:
        own = inspect.signature(command, eval_str=True)
        options = [_option(name, model.model_fields[name]) for name in names]

        @wraps(command)
        def run(**arguments: Any) -> int:
            given = {name: value for name in names if (value := arguments.pop(name)) is not None}
            return command(**arguments, given=given)

        parameters = [parameter for parameter in own.parameters.values() if parameter.name != "given"]
        run.__signature__ = own.replace(parameters=[*parameters, *options])  # type: ignore[attr-defined]
        return run

    return add


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    """The option of a field. Its default is None, which says that it was not given; the model has its own."""
    kind = field.annotation
    if isinstance(kind, UnionType):  # with None
        kind = next(one for one in get_args(kind) if one is not NoneType)
    facts = [] if field.default is None or kind is bool else [f"default: {field.default}"]
    facts += [
        f"x{sign}{getattr(bound, word)}"
        for bound in field.metadata
        for word, sign in _BOUNDS.items()
        if hasattr(bound, word)
    ]
    option = typer.Option(
        None,
        f"--{name.replace('_', '-')}",
        help="  ".join([field.description or "", f"[{'; '.join(facts)}]" if facts else ""]).strip(),
        show_default=False,
        parser=_reader(field) if kind in (int, float) else None,
    )
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=kind)


def _reader(field: FieldInfo) -> Callable[[str], Any]:
    """Reads the text of an option as the model would, with the field's bounds."""
    bounded: Any = Annotated[field.annotation, *field.metadata]

    def read(text: str) -> Any:
        try:
            return TypeAdapter(bounded).validate_python(text)
        except ValidationError as error:
            raise typer.BadParameter(f"{error.errors()[0]['msg']} (got {text!r})") from None

    return read


def default_of(model: type[Settings], name: str) -> Any:
    """The default of a field, for an option that stands for it under other bounds."""
    return model.model_fields[name].default


def positive(text: str) -> float:
    """A number above 0, and finite."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise typer.BadParameter(f"{text!r} is not a positive number")
    return value


def steps(text: str) -> tuple[int, int]:
    """``FIRST:STOP``, such as ``0:1000``."""
    first, colon, stop = text.partition(":")
    if not (colon and first.isdigit() and stop.isdigit() and int(first) < int(stop)):
        raise typer.BadParameter(f"{text!r} is not FIRST:STOP, such as 0:1000")
    return int(first), int(stop)


def json_object(text: str) -> dict[str, Any]:
    """The settings of a deployment."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise typer.BadParameter(f"{text!r} is not a JSON object: give " + '{"name": value, ...}')
    return value


def setting(text: str) -> tuple[str, Any]:
    """``name=value``; the value is JSON where it can be read as such, else the text itself."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise typer.BadParameter(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
