"""Findings -> the loss and beta to start with, and whether to train at all."""

import numpy as np

from reflogp.stages.diagnose.diagnosis import Finding, Suggestion
from reflogp.stages.diagnose.survey import Facts

_BETAS = (0.05, 0.1, 0.2)
_DRIFT = 0.2  # nats a token, over both responses, that saturate a pair at the right beta
_SATURATED = 3.0  # the logit where sigmoid is 0.95


def suggest(facts: Facts, found: list[Finding]) -> Suggestion:
    """Suggest a loss and a beta, with the reason and the command."""
    wrong = {finding.name for finding in found if finding.severity in ("problem", "warning")}
    if facts.kind == "unpaired":
        loss = "kto" if facts.kl else "kto_no_kl"
        return Suggestion(
            loss=loss,
            beta=0.1,
            reason="unpaired rows need a loss of single responses (Ethayarajh et al. 2024)",
            command=f"reflogp train --cache {facts.cache} --output model/ --loss {loss} --beta 0.1",
        )
    loss, beta, reason = "dpo", *_beta(facts)
    more = ""
    if "length bias" in wrong:
        loss, beta = "dpo_norm", 5.0
        reason = (
            "length alone tells much of the preference, so the reward is a mean over tokens; means "
            "are some hundred times smaller than sums, hence the beta (Lambert et al. 2024)"
        )
    elif "similarity" in wrong:
        loss = "dpop"
        reason += "; DPOP keeps the chosen response likely where both are near-identical"
    elif wrong & {"contradictions", "confidence"}:
        loss, more = "cdpo", " --loss-args label_smoothing=0.1"
        reason += "; the labels are noisy, so one in ten is taken for wrong (Mitchell 2023)"
    return Suggestion(
        loss=loss,
        beta=beta,
        reason=reason,
        command=f"reflogp train --cache {facts.cache} --output model/ --loss {loss} "
        f"--beta {beta:g}{more}",
    )


def verdict(found: list[Finding]) -> str:
    """One sentence."""
    problems = [finding.name for finding in found if finding.severity == "problem"]
    warnings = [finding.name for finding in found if finding.severity == "warning"]
    if problems:
        return f"Fix this before you train: {', '.join(problems)}."
    if warnings:
        return f"These preferences can teach; keep an eye on: {', '.join(warnings)}."
    return "Nothing found that speaks against training on these preferences."


def _beta(facts: Facts) -> tuple[float, str]:
    """A beta at which the loss of a median pair saturates before the policy has drifted far.

    At beta, a pair's loss has saturated when its margin, a sum of log-ratios over the tokens of
    both responses, is 3 / beta nats.
    """
    tokens = float(np.median(facts.measures.chosen_tokens + facts.measures.rejected_tokens))
    wanted = _SATURATED / (_DRIFT * max(tokens, 1.0))
    beta = min(_BETAS, key=lambda one: abs(np.log(one / wanted)))
    return beta, (
        f"a pair has {tokens:.0f} response tokens in the median; at beta {beta:g} it stops pulling "
        f"when they have drifted by {_SATURATED / beta / max(tokens, 1.0):.2f} nats each"
    )
