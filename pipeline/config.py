"""A YAML file and the command line -> one validated model for each stage.

The models (stages/*/config.py) are the only place where an option is declared. Its YAML key, flag,
help and default come from there.
"""

import difflib
import inspect
import json
import reprlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import typer
import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from reflogp.data_schemas.errors import InputError
from reflogp.pipeline.foreign import advice_on
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.train.config import TrainConfig

_REPR = reprlib.Repr()  # with aliases, a small YAML file can expand to a huge value
_REPR.maxstring = _REPR.maxother = 200

Config = TypeVar("Config", bound=BaseModel)
SECTIONS: dict[str, type[BaseModel]] = {
    "precompute": PrecomputeConfig,
    "train": TrainConfig,
    "sweep": TrainConfig,  # the keys of train, each with a list of values
}
_LONGEST = 1_000_000  # characters of a file
_OWNERS = ("precompute", "train")


def load_file(path: Path | None) -> dict[str, dict[str, Any]]:
    """Read the sections of a YAML file. Without a file, all sections are empty.

    Raises:
        InputError: the file cannot be read, or has an unknown section or key.
    """
    if path is None:
        return {name: {} for name in SECTIONS}
    content = read_yaml(path)
    require_known(content, SECTIONS, str(path), "section")
    sections = {name: content.get(name) or {} for name in SECTIONS}
    for name, section in sections.items():
        _require_mapping(section, f"{path}: {name}")
        require_known(section, SECTIONS[name].model_fields, f"{path}: {name}", "key")
    return sections


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of keys with values.

    Raises:
        InputError: the file cannot be read or has no keys.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_LONGEST + 1)  # bounded, since a device may never end
        if len(text) > _LONGEST:
            raise InputError(f"--config {path}: longer than {_LONGEST:,} characters.")
        content = yaml.safe_load(text) or {}
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"--config {path}: cannot be read: {error.strerror}.") from error
    except Exception as error:  # YAML's errors, and those of int() and datetime for a value
        reason = " ".join(str(error).split())
        raise InputError(f"--config {path}: not valid YAML: {reason}") from error
    _require_mapping(content, str(path))
    return dict(content)


def build(model: type[Config], section: Mapping[str, Any], given: Mapping[str, Any]) -> Config:
    """Build a stage's configuration from the command line, the file's section and the defaults.

    Args:
        model: the stage's model.
        section: from the YAML file.
        given: from the command line, which overrides the file; None means not given.

    Raises:
        InputError: a value is missing or invalid. The message names the option.
    """
    values = dict(section) | {name: value for name, value in given.items() if value is not None}
    try:
        config = model.model_validate(values)
    except ValidationError as error:
        problems = [
            _explain(problem)
            for problem in error.errors()
            if problem["type"] != "default_factory_not_called"  # a consequence of another problem
        ]
        raise InputError("; ".join(problems) + ". See --help.") from error
    for name, value in config:
        _require_text(name, value)
    return config


def of_training(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The section `train`. In a file for both stages, its cache is the one that stage one makes."""
    made = {name: value for name, value in sections["precompute"].items() if name == "cache"}
    return {**made, **sections["train"]}


def overridden(
    sections: Mapping[str, Mapping[str, Any]], settings: Iterable[str]
) -> dict[str, dict[str, Any]]:
    """The sections with settings such as `train.beta=0.2` in place of their own.

    Raises:
        InputError: a setting is not of this form, or there is no such option.
    """
    found = {name: dict(section) for name, section in sections.items()}
    for text in settings:
        path, equals, value = text.partition("=")
        section, _, name = path.strip().partition(".")
        name = name.replace("-", "_")
        if not (section in _OWNERS and name and equals):
            raise InputError(f"--set {text}: give precompute.NAME=VALUE or train.NAME=VALUE.")
        require_known([name], SECTIONS[section].model_fields, f"--set {text}", "option")
        found[section][name] = value.strip()
    return found


def known_to(model: type[BaseModel], sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The values in both stages' sections for the options that `model` has too."""
    both = {**sections["train"], **sections["precompute"]}
    return {name: value for name, value in both.items() if name in model.model_fields}


def _require_text(name: str, value: Any) -> None:
    """Refuse text that no record can store, instead of failing when hours of work are sealed."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{_option(name)}: {text!r} is not UTF-8. Rename it.") from error
    if "\0" in str(value):
        raise InputError(f"{_option(name)}: {value!r} has a null character. Remove it.")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')} (in YAML: {name})"


def _explain(problem: Any) -> str:
    message = problem["msg"].removeprefix("Value error, ").rstrip(".")
    if not problem["loc"]:  # a problem of several options, which its message names
        return str(message)
    option = _option(str(problem["loc"][0]))
    if problem["type"] == "missing":
        return f"{option} is required"
    return f"{option}: {message[0].lower()}{message[1:]}, got {_REPR.repr(problem['input'])}"


def _require_mapping(content: Any, where: str) -> None:
    if not isinstance(content, dict):
        raise InputError(f"{where}: expected keys with values, got {type(content).__name__}.")


def require_known(content: Iterable[Any], known: Mapping[str, Any], where: str, kind: str) -> None:
    """Refuse unknown names, and suggest similar ones.

    Raises:
        InputError: there is an unknown name.
    """
    for name in content:
        if name not in known:
            owners = [owner for owner in _OWNERS if name in SECTIONS[owner].model_fields]
            close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
            if owners:
                advice = f"it belongs under {' or '.join(map(repr, owners))}."
            elif advice := advice_on(str(name)):
                if kind == "section":
                    advice += f" `reflogp convert-config {where}` converts the file."
            else:
                advice = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}."
            raise InputError(f"{where}: there is no {kind} {name!r}; {advice}")


ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="YAML file. The command line overrides it.")
]


def options_of(
    model: type[BaseModel], *, config_file: bool = True, **more: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command `f(config, **given)` one option for each field of `model`.

    An option that was not given is passed as None, so the value from YAML or the default applies.

    Args:
        model: the stage's configuration.
        config_file: whether the options can also come from a YAML file, named by --config.
        more: Typer annotations of parameters outside the configuration. One that does not allow
            None is required.
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
    elif not (field.default in (None, -1, "") or field.default is False or field.default_factory):
        text += f" (default {field.default})"
    # --no-x overrides x in the YAML file
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
    """The type that Typer parses. The model validates the rest, with uniform messages."""
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
