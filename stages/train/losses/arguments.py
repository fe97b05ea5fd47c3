"""Reads the arguments of a loss, their ranges and defaults from its signature."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
InnerFraction = Annotated[float, Field(gt=0, lt=1)]
FlipRate = Annotated[float, Field(ge=0, lt=0.5)]
"""Share of the pairs whose labels are assumed to be swapped."""


def parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The keyword arguments of a loss, by name."""
    kinds = inspect.signature(function).parameters
    return {name: p for name, p in kinds.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}


def check_arguments(
    functions: Iterable[Callable[..., Any]], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Check arguments for a combination of losses. At least one of them must have each argument.

    Returns:
        The arguments, with values of the right type.

    Raises:
        ValueError: no loss has an argument, or a value is out of range. The message lists the
            arguments.
    """
    known: dict[str, list[inspect.Parameter]] = {}
    for function in functions:
        for name, parameter in parameters(function).items():
            known.setdefault(name, []).append(parameter)
    beta = known.pop("beta", None)
    checked = {}
    for name, value in given.items():
        if name == "beta" and beta:
            raise ValueError("beta has an option of its own, --beta (in YAML: beta)")
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            there_are = f"it has: {', '.join(known)}" if known else "it has none"
            advice = f"did you mean {close[0]!r}?" if close else there_are
            raise ValueError(f"the loss has no argument {name!r} ({advice})")
        for parameter in known[name]:
            try:
                checked[name] = TypeAdapter(parameter.annotation).validate_python(value)
            except ValidationError as error:
                message = error.errors()[0]["msg"]
                raise ValueError(f"{name}: {message[0].lower()}{message[1:]}") from error
    return checked
