"""One YAML file and the command line -> one validated model for each stage.

The models (stages/*/config.py) are the only place where an option is declared; its YAML key, its
command-line option, its help and its default all come from there.
"""

import difflib
import json
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from data_schemas.errors import InputError
from stages.precompute.config import PrecomputeConfig
from stages.train.config import TrainConfig

_REPR = reprlib.Repr()  # an alias can make a small YAML file a huge value
_REPR.maxstring = _REPR.maxother = 200

Config = TypeVar("Config", bound=BaseModel)
SECTIONS: dict[str, type[BaseModel]] = {
    "precompute": PrecomputeConfig,
    "train": TrainConfig,
    "sweep": TrainConfig,  # its keys; each value is a list of what the key is set to
}
_LONGEST = 1_000_000  # characters of a file
_OWNERS = ("precompute", "train")


def load_file(path: Path | None) -> dict[str, dict[str, Any]]:
    """The sections of a YAML file, as they stand there; empty ones where there is no file.

    Raises:
        InputError: the file cannot be read, or names a section or a key that does not exist.
    """
    if path is None:
        return {name: {} for name in SECTIONS}
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_LONGEST + 1)  # a device need not end
        if len(text) > _LONGEST:
            raise InputError(f"--config {path}: longer than {_LONGEST:,} characters.")
        content = yaml.safe_load(text) or {}
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"--config {path}: cannot be read: {error.strerror}.") from error
    except Exception as error:  # YAML's own, and whatever int() and datetime make of a value
        reason = " ".join(str(error).split())
        raise InputError(f"--config {path}: not valid YAML: {reason}") from error
    _require_mapping(content, str(path))
    require_known(content, SECTIONS, str(path), "section")
    sections = {name: content.get(name) or {} for name in SECTIONS}
    for name, section in sections.items():
        _require_mapping(section, f"{path}: {name}")
        require_known(section, SECTIONS[name].model_fields, f"{path}: {name}", "key")
    return sections


def build(model: type[Config], section: Mapping[str, Any], given: Mapping[str, Any]) -> Config:
    """One stage's configuration: defaults, then the file's section, then what was given.

    Args:
        model: the stage's model.
        section: from the YAML file.
        given: from the command line; None means not given.

    Raises:
        InputError: a value is missing or of the wrong kind; names the option.
    """
    values = dict(section) | {name: value for name, value in given.items() if value is not None}
    try:
        config = model.model_validate(values)
    except ValidationError as error:
        problems = [
            _explain(problem)
            for problem in error.errors()
            if problem["type"] != "default_factory_not_called"  # follows from another one
        ]
        raise InputError("; ".join(problems) + ". See --help.") from error
    for name, value in config:
        _require_text(name, value)
    return config


def known_to(model: type[BaseModel], sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What both stages' sections say of the settings that `model` shares with them."""
    both = {**sections["train"], **sections["precompute"]}
    return {name: value for name, value in both.items() if name in model.model_fields}


def _require_text(name: str, value: Any) -> None:
    """Refuse now what no record could hold later, when hours of work are to be sealed."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{_option(name)}: {text!r} is not UTF-8. Rename it.") from error
    if "\0" in str(value):
        raise InputError(f"{_option(name)}: {value!r} holds a null character. Take it out.")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')} (in YAML: {name})"


def _explain(problem: Any) -> str:
    message = problem["msg"].removeprefix("Value error, ").rstrip(".")
    if not problem["loc"]:  # of several options together; it names them
        return str(message)
    option = _option(str(problem["loc"][0]))
    if problem["type"] == "missing":
        return f"{option} is required"
    return f"{option}: {message[0].lower()}{message[1:]}, got {_REPR.repr(problem['input'])}"


def _require_mapping(content: Any, where: str) -> None:
    if not isinstance(content, dict):
        raise InputError(f"{where}: expected keys with values, got {type(content).__name__}.")


def require_known(
    content: Mapping[Any, Any], known: Mapping[str, Any], where: str, kind: str
) -> None:
    """Refuse a name that is not known, and say which was perhaps meant.

    Raises:
        InputError: there is one.
    """
    for name in content:
        if name not in known:
            owners = [owner for owner in _OWNERS if name in SECTIONS[owner].model_fields]
            close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
            if owners:
                advice = f"it belongs under {' or '.join(map(repr, owners))}."
            else:
                advice = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}."
            raise InputError(f"{where}: there is no {kind} {name!r}; {advice}")
