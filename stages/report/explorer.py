"""Data for the loss explorer's JavaScript: names, defaults, and pairs of the runs."""

from collections.abc import Sequence
from typing import Any

from reflogp.stages.report.gather import FinishedRun
from reflogp.stages.report.pair_charts import SIDES, log_ratios

EXPLORED = (
    *("dpo", "cdpo", "robust", "ipo", "hinge", "exo", "discopop", "dpop"),
    *("apo_zero", "apo_down", "nca", "bco", "sppo"),
    *("fdpo_forward_kl", "fdpo_js", "fdpo_alpha"),
)
"""The losses in losses.js, which depend only on a pair's two log-ratios."""

FIXED: dict[str, dict[str, Any]] = {"ipo": {"per_token": False}, "bco": {"batch_shift": False}}
"""Fixed arguments, without which a loss would depend on more than the log-ratios."""

_PAIRS = 200  # offered in the explorer
_OVER_SUMS = {"ipo": "(m - 1/(2 beta))^2, over sums", "bco": "-log s(beta c) - log s(-beta r)"}
"""Formulas with the FIXED arguments."""


def explorer_data(runs: Sequence[FinishedRun]) -> dict[str, Any]:
    """Return the explorer's losses, its initial state, and pairs to load, as JSON values."""
    return {
        "losses": {name: _loss(name) for name in EXPLORED},
        "start": _start(runs[0]) if runs else {"loss": "dpo", "given": {}},
        "pairs": [pair for run in runs for pair in _pairs(run, len(runs))],
    }


def first_pairs(runs: Sequence[FinishedRun]) -> list[int]:
    """Return the index of each run's first pair in the pairs of `explorer_data`."""
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


def _start(run: FinishedRun) -> dict[str, Any]:
    """Return the run's own loss and arguments if the explorer has that loss, else DPO."""
    settings = run.record.settings
    name = settings.get("loss")
    if name not in EXPLORED:
        return {"loss": "dpo", "given": {"beta": settings.get("beta")}}
    fixed = FIXED.get(name, {})
    given = {k: v for k, v in settings.get("loss_args", {}).items() if k not in fixed}
    return {"loss": name, "given": given | {"beta": settings.get("beta")}}


def _pairs(run: FinishedRun, runs: int) -> list[dict[str, Any]]:
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
