"""What the explorer of the loss needs beside its JavaScript: names, defaults, pairs of the runs."""

from collections.abc import Sequence
from typing import Any

from reflogp.stages.report.gather import Run
from reflogp.stages.report.pair_charts import SIDES, log_ratios

EXPLORED = (
    *("dpo", "cdpo", "robust", "ipo", "hinge", "exo", "discopop", "dpop"),
    *("apo_zero", "apo_down", "nca", "bco", "sppo"),
    *("fdpo_forward_kl", "fdpo_js", "fdpo_alpha"),
)
"""The losses in losses.js: functions of a pair's two log-ratios and nothing else."""

FIXED: dict[str, dict[str, Any]] = {"ipo": {"per_token": False}, "bco": {"batch_shift": False}}
"""Arguments that must have this value for that to hold."""

_PAIRS = 200  # to choose from


def explorer_data(runs: Sequence[Run]) -> dict[str, Any]:
    """The explorer's losses, where it starts, and pairs to load; all of it JSON."""
    return {
        "losses": {name: _loss(name) for name in EXPLORED},
        "start": _start(runs[0]) if runs else {"loss": "dpo", "given": {}},
        "pairs": [pair for run in runs for pair in _pairs(run, len(runs))],
    }


def first_pairs(runs: Sequence[Run]) -> list[int]:
    """Where the pairs of each run begin in explorer_data's."""
    numbers = [len(run.pairs[: _PAIRS // len(runs)]) for run in runs]
    return [sum(numbers[:i]) for i in range(len(numbers))]


def _loss(name: str) -> dict[str, Any]:
    from reflogp.stages.train.losses.arguments import parameters
    from reflogp.stages.train.losses.registry import LOSSES

    loss, fixed = LOSSES[name], FIXED.get(name, {})
    arguments = {
        argument: parameter.default
        for argument, parameter in parameters(loss.function).items()
        if argument not in fixed
    }
    formula = _OVER_SUMS.get(name, loss.formula)
    return {"formula": formula, "paper": loss.paper, "choose": loss.choose, "arguments": arguments}


_OVER_SUMS = {"ipo": "(m - 1/(2 beta))^2, over sums", "bco": "-log s(beta c) - log s(-beta r)"}
"""Formulas with the FIXED arguments."""


def _start(run: Run) -> dict[str, Any]:
    """The run's own loss and arguments, if the explorer has it."""
    settings = run.record.settings
    name = settings.get("loss")
    if name not in EXPLORED:
        return {"loss": "dpo", "given": {"beta": settings.get("beta")}}
    fixed = FIXED.get(name, {})
    given = {k: v for k, v in settings.get("loss_args", {}).items() if k not in fixed}
    return {"loss": name, "given": given | {"beta": settings.get("beta")}}


def _pairs(run: Run, runs: int) -> list[dict[str, Any]]:
    chosen, rejected = (log_ratios(run.pairs, side) for side in SIDES)
    prefix = f"{run.name}, " if runs > 1 else ""
    return [
        {
            "label": f"{prefix}row {pair['source_row']}: margin {pair['margin']:+.3f}",
            "chosen": float(chosen[i]),
            "rejected": float(rejected[i]),
            "beta": run.record.settings.get("beta"),
        }
        for i, pair in enumerate(run.pairs[: _PAIRS // runs])
    ]
