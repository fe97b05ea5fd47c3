"""A stage's configuration model -> the command-line options of a Typer command.

Each field becomes an option of the same name, with the field's description as its help, so that
command line, YAML and documentation cannot drift apart.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="YAML file; options given here win over it.")
]


def options_of(
    model: type[BaseModel], *, config_file: bool = True, **more: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command `f(config, **given)` one option for each field of `model`.

    Args:
        model: the stage's configuration.
        config_file: whether the options may also stand in a YAML file, named by --config.
        more: Typer annotations of what is not part of a configuration; one that admits no None is
            required.

    An option that was not given arrives as None, so that a YAML file's value or the default holds.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters = [
            _parameter(name, field, config_file) for name, field in model.model_fields.items()
        ]
        parameters += [_keyword(name, annotation) for name, annotation in more.items()]
        if config_file:
            parameters.append(_keyword("config", ConfigFile))
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return decorate


def _parameter(name: str, field: FieldInfo, config_file: bool) -> inspect.Parameter:
    flag = f"--{name.replace('_', '-')}"
    text = field.description or ""
    if field.is_required():
        text += " (required, here or in --config)"
    elif field.default not in (None, -1) and field.default_factory is None:
        text += f" (default {field.default})"
    # --no-x is for whom the YAML file says x
    negated = config_file and field.annotation is bool
    declarations = [f"{flag}/--no-{flag[2:]}" if negated else flag]
    option = typer.Option(*declarations, help=text, show_default=False, metavar=_metavar(field))
    return _keyword(name, Annotated[_cli_type(field.annotation) | None, option])


def _keyword(name: str, annotation: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    admits_none = type(None) in get_args(get_args(annotation)[0])
    default = None if admits_none else inspect.Parameter.empty
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


def _cli_type(annotation: Any) -> Any:
    """What Typer parses; the model validates the rest, with one kind of message."""
    plain = next((kind for kind in (bool, int, float) if annotation is kind), None)
    if plain is not None:
        return plain
    members = [member for member in get_args(annotation) if member is not type(None)]
    if type(None) in get_args(annotation) and len(members) == 1:
        return _cli_type(members[0])
    return str


def _metavar(field: FieldInfo) -> str | None:
    for kind in (field.annotation, *get_args(field.annotation)):
        if get_origin(kind) is Literal:
            return "|".join(map(str, get_args(kind)))
    return None
