"""Applies all rules to one run."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from reflogp.stages.train.advice.drift import falling_chosen, length_exploitation, reference_drift
from reflogp.stages.train.advice.evidence import MIN_STEPS, Advice, Evidence
from reflogp.stages.train.advice.history import evaluations, training
from reflogp.stages.train.advice.learning import (
    always_clipped,
    flat_margins,
    memorised,
    nothing_trained,
    overfit,
)
from reflogp.stages.train.losses.objective import uses

RULES: tuple[Callable[[Evidence], Advice | None], ...] = (
    nothing_trained,
    reference_drift,
    falling_chosen,
    flat_margins,
    length_exploitation,
    overfit,
    memorised,
    always_clipped,
)
EXPLAINS = {
    "nothing_trained": ("flat_margins",),
    "reference_drift": ("flat_margins", "always_clipped"),
}
"""Codes that are consequences of a worse problem. Reporting them would distract from it."""


def advise(
    history: Sequence[Mapping[str, float]],
    *,
    beta: float,
    losses: Iterable[str],
    total_steps: int | None = None,
    max_grad_norm: float = 0.0,
) -> list[Advice]:
    """The problems of a run so far; none before MIN_STEPS steps.

    Args:
        history: the entries of metrics.jsonl, in order. Each has a `step` and either `loss` and the
            other metrics of a training step, or `eval_loss` and those of an evaluation.
        beta: of the rewards.
        losses: names of the losses (registry.py).
        total_steps: of the whole run; None if it has ended.
        max_grad_norm: limit of gradient clipping; 0 for no clipping.
    """
    train = training(history)
    if len(train) < MIN_STEPS:
        return []
    names = frozenset(losses)
    share = train.steps[-1] / total_steps if total_steps else 1.0
    reference = uses(dict.fromkeys(names, 1.0), "reference")
    seen = Evidence(train, evaluations(history), beta, names, reference, share, max_grad_norm)
    found = [advice for rule in RULES if (advice := rule(seen))]
    codes = {advice.code for advice in found}
    explained = {name for code in codes for name in EXPLAINS.get(code, ())}
    return [advice for advice in found if advice.code not in explained]
