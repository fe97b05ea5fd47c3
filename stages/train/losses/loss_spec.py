"""Parses and checks the `loss` option: `dpo`, or `dpo=1,sft=0.2`.

The losses import torch, which --help must not wait for. They are imported only when there is a
configuration to check.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from reflogp.stages.assignments import assignments

_BETA = 0.1  # scales the logged rewards of losses without a beta


def loss_weights(spec: str) -> dict[str, float]:
    """The weight of each loss in `spec`, by name.

    Raises:
        ValueError: `spec` has another form, or a weight is not a positive number.
    """
    if "=" not in spec and "," not in spec:
        return {spec.strip(): 1.0}
    try:
        weights = {name: float(weight) for name, weight in assignments(spec).items()}
    except ValueError as error:
        raise ValueError("expected a name, or name=weight,name=weight") from error
    if not all(0 < weight < float("inf") for weight in weights.values()):
        raise ValueError("weights must be positive")
    return weights


def default_beta(spec: str) -> float:
    """The default beta of the first loss that has one."""
    from reflogp.stages.train.losses.arguments import parameters
    from reflogp.stages.train.losses.registry import EVERY_LOSS

    found = [parameters(EVERY_LOSS[name].function).get("beta") for name in loss_weights(spec)]
    return next((float(beta.default) for beta in found if beta is not None), _BETA)


def checked_arguments(spec: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Check the arguments `given` and convert their values to the right types.

    Raises:
        ValueError: none of the losses has an argument, or a value is out of range.
    """
    from reflogp.stages.train.losses.arguments import check_arguments
    from reflogp.stages.train.losses.registry import EVERY_LOSS

    return check_arguments([EVERY_LOSS[name].function for name in loss_weights(spec)], given)


def checked_weighting(spec: str, weighting: str) -> str:
    """Return `weighting` if the losses allow a weight per pair.

    Raises:
        ValueError: a loss compares pairs with each other, or takes unpaired rows.
    """
    from reflogp.stages.train.losses.registry import LOSSES

    if weighting != "none":
        for name in loss_weights(spec):
            if name not in LOSSES:
                raise ValueError(f"it weights pairs, and the loss {name} takes unpaired rows")
            if "batch" in LOSSES[name].needs:
                raise ValueError(f"the loss {name} sorts the batch, so pairs cannot have weights")
    return weighting


def _text(value: Any) -> Any:
    """Convert a mapping from YAML to the form of the command line."""
    if isinstance(value, dict):
        return ",".join(f"{name}={weight}" for name, weight in value.items())
    return value


def _known(spec: str) -> str:
    from reflogp.stages.train.losses.registry import LOSSES, named

    weights = loss_weights(spec)
    for name in weights:
        named(name)
    over_pairs = [name for name in weights if name in LOSSES]
    if over_pairs and len(over_pairs) < len(weights):
        other = next(name for name in weights if name not in LOSSES)
        raise ValueError(
            f"the loss {over_pairs[0]} takes pairs and {other} takes unpaired rows, and no cache "
            "has both"
        )
    return spec


LossSpec = Annotated[str, BeforeValidator(_text), AfterValidator(_known)]
