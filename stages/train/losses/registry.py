"""Every loss by its name: function, formula, paper, needs."""

import difflib
from collections.abc import Callable
from typing import Literal, NamedTuple

from torch import Tensor

from reflogp.stages.train.losses import (
    anchored,
    divergences,
    length,
    pairwise,
    reference_free,
    unpaired,
)

Need = Literal["reference", "lengths", "tokens", "batch", "kl"]
"""tokens is `PairLogps.shared`, kl is `UnpairedLogps.kl`. LETTERS explains the rest."""


LETTERS = (
    "c, r: log(pi_theta / pi_ref) of the chosen and the rejected response; m = c - r;\n"
    "C, R: log pi_theta; |c|, |r|: tokens; s: logistic sigmoid; e: label_smoothing.\n"
    "u: like c, of an unpaired response that is good or bad; d, b: desirable_weight\n"
    "and undesirable_weight; z: estimate of KL(pi_theta || pi_ref), over a step.\n"
    "Needs: pairs or unpaired rows; reference: cached sums of log-probs; tokens:\n"
    "cached log-probs per token; lengths: token counts; batch: compares pairs, so\n"
    "use a large --batch-size; kl: the cache's KL completions.\n"
)
"""The legend of formulas and needs."""


class Loss(NamedTuple):
    """A loss and its description.

    Attributes:
        function: takes PairLogps or UnpairedLogps and keyword arguments; returns float64 [batch].
        formula: for one pair or row, in the letters above.
        paper: authors, year, arXiv number, equation.
        choose: when to choose it.
        needs: what it uses besides the policy's log-probs.
        mean_reward: its reward is beta times the mean log-prob per token (SimPO), not the sum.
    """

    function: Callable[..., Tensor]
    formula: str
    paper: str
    choose: str
    needs: frozenset[Need]
    mean_reward: bool = False


def _needs(*needs: Need) -> frozenset[Need]:
    return frozenset(needs)


_SUMS = _needs("reference")
_LENGTHS = _needs("reference", "lengths")
_BATCH = _needs("reference", "batch")

LOSSES: dict[str, Loss] = {
    "dpo": Loss(pairwise.dpo, "-log s(beta m)",
        "Rafailov et al. 2023, 2305.18290, eq. 7",
        "first, and as a baseline: reliable labels, responses that the policy could write",
        _SUMS),
    "cdpo": Loss(pairwise.cdpo, "-(1-e) log s(beta m) - e log s(-beta m)",
        "Mitchell 2023, A note on DPO with noisy preferences",
        "a known share of the labels is wrong, and margins should stop at that level of doubt",
        _SUMS),
    "robust": Loss(pairwise.robust, "(-(1-e) log s(beta m) + e log s(-beta m)) / (1-2e)",
        "Chowdhury et al. 2024, 2403.00409",
        "labels were flipped at random at a known rate: unbiased, with more variance than cdpo",
        _SUMS),
    "ipo": Loss(pairwise.ipo, "(c/|c| - r/|r| - 1/(2 beta))^2",
        "Azar et al. 2023, 2310.12036, eq. 17",
        "annotators agree on nearly every pair, and margins grow without limit under DPO",
        _LENGTHS),
    "hinge": Loss(pairwise.hinge, "max(0, 1 - beta m)",
        "Zhao et al. 2023, 2305.10425; Liu et al. 2023, 2309.06657",
        "pairs whose margin is large enough should have no further effect",
        _SUMS),
    "exo": Loss(pairwise.exo, "KL(s(beta m) || 1-e)",
        "Ji et al. 2024, 2402.00856, eq. 16",
        "the policy should settle on the best answers rather than cover all good ones",
        _SUMS),
    "discopop": Loss(pairwise.discopop, "b exp(-beta m) - (1-b) log s(beta m), b = s(beta m/tau)",
        "Lu et al. 2024, 2406.08414, eq. 5",
        "to reproduce the paper; below tau 0.1023 (as by default), margins fall before they rise",
        _SUMS),
    "aot": Loss(pairwise.aot, "-log s(beta (sorted(C-R) - sorted(ref C-R)))",
        "Melnyk et al. 2024, 2406.05882",
        "chosen should beat rejected as a distribution, not in every pair; use large batches",
        _BATCH),
    "aot_unpaired": Loss(pairwise.aot_unpaired, "-log s(beta (sorted(c) - sorted(r)))",
        "Melnyk et al. 2024, 2406.05882",
        "like aot, but compares all chosen with all rejected responses",
        _BATCH),
    "dpo_norm": Loss(length.dpo_norm, "-log s(beta (c/|c| - r/|r|))",
        "Lambert et al. 2024, 2411.15124",
        "lengths differ widely, and a long response should not count more than a short one",
        _LENGTHS),
    "rdpo": Loss(length.rdpo, "-log s(beta m + alpha (|c| - |r|))",
        "Park et al. 2024, 2403.19159",
        "chosen is usually longer, and answers grow in training: puts a price on each token",
        _LENGTHS),
    "ld_dpo": Loss(length.ld_dpo, "-log s(beta (alpha m + (1-alpha) m of the shared length))",
        "Liu et al. 2024, 2409.06411",
        "like rdpo, but only tokens beyond the shorter response's length count less",
        _needs("reference", "tokens")),
    "dpop": Loss(anchored.dpop, "-log s(beta (m - lambda max(0, -c)))",
        "Pal et al. 2024, 2402.13228",
        "the two responses differ in few tokens (mathematics, edits), and rewards/chosen falls",
        _SUMS),
    "rpo": Loss(anchored.rpo, "-log s(beta m) - alpha C/|c|",
        "Pang et al. 2024, 2404.19733",
        "rewards/chosen falls while the margin grows; reasoning that ends in one right answer",
        _LENGTHS),
    "apo_zero": Loss(anchored.apo_zero, "s(-beta c) + s(beta r)",
        "D'Oosterlinck et al. 2024, 2408.06266, eq. 7",
        "chosen is better than what the policy writes: chosen goes up, rejected down",
        _SUMS),
    "apo_down": Loss(anchored.apo_down, "s(beta c) + s(-beta m)",
        "D'Oosterlinck et al. 2024, 2408.06266, eq. 8",
        "chosen is worse than what the policy writes: both go down, rejected further",
        _SUMS),
    "nca": Loss(anchored.nca, "-log s(beta c) - (log s(-beta c) + log s(-beta r))/2",
        "Chen et al. 2024, 2402.05369",
        "chosen must stay likely in absolute terms, not only relative to rejected",
        _SUMS),
    "bco": Loss(anchored.bco, "-log s(beta c - d) - log s(d - beta r), d = 0 or batch mean",
        "Jung et al. 2024, 2404.04656",
        "each response was judged good or bad on its own, although the rows are pairs",
        _SUMS),
    "sppo": Loss(anchored.sppo, "(c - 1/(2 beta))^2 + (r + 1/(2 beta))^2",
        "Wu et al. 2024, 2405.00675, eq. 4.7",
        "the policy wrote both responses, and a judge ranked them, over several rounds",
        _SUMS),
    "fdpo_forward_kl": Loss(divergences.fdpo_forward_kl, "-log s(beta (exp(-r) - exp(-c)))",
        "Wang et al. 2023, 2309.16240",
        "answers must stay as varied as the reference's, at some cost in reward",
        _SUMS),
    "fdpo_js": Loss(divergences.fdpo_js, "-log s(beta (log s(c) - log s(r)))",
        "Wang et al. 2023, 2309.16240",
        "between dpo and fdpo_forward_kl: nearly DPO's reward, more variety",
        _SUMS),
    "fdpo_alpha": Loss(divergences.fdpo_alpha,
        "-log s(beta (exp(-alpha r) - exp(-alpha c)) / alpha)",
        "Wang et al. 2023, 2309.16240",
        "to choose a point between dpo (alpha near 0) and fdpo_forward_kl (alpha near 1)",
        _SUMS),
    "sft": Loss(reference_free.sft, "-C/|c|",
        "a term to add, as in Pang et al. 2024, 2404.19733",
        "as an extra term that keeps chosen likely: dpo=1,sft=0.2",
        _needs("lengths")),
    "simpo": Loss(reference_free.simpo, "-log s(beta (C/|c| - R/|r|) - gamma)",
        "Meng et al. 2024, 2405.14734, eq. 6",
        "answers must not get longer, and you can tune beta, gamma and a low learning rate",
        _needs("lengths"), mean_reward=True),
    "orpo": Loss(reference_free.orpo, "-C/|c| - beta log s(log odds ratio of C/|c|, R/|r|)",
        "Hong et al. 2024, 2403.07691, eq. 6, 7",
        "training starts from a base model: fine-tuning and preferences in one run",
        _needs("lengths"), mean_reward=True),
    "cpo": Loss(reference_free.cpo, "-log s(beta (C - R)) - alpha C/|c|",
        "Xu et al. 2024, 2401.08417",
        "the policy is already good, and chosen responses are worth imitating",
        _needs("lengths")),
}  # fmt: skip
"""Losses of pairs, in the order in which `reflogp train --list-losses` prints them."""

_KTO = "d s(-beta (u - z)) if good, b s(beta (u - z)) if bad"

UNPAIRED_LOSSES: dict[str, Loss] = {
    "kto": Loss(unpaired.kto, _KTO,
        "Ethayarajh et al. 2024, 2402.01306, eq. 7",
        "answers were judged one by one, thumbs up or down; good and bad may be unequal in number",
        _needs("reference", "kl")),
    "kto_no_kl": Loss(unpaired.kto_no_kl, "KTO with z = 0",
        "Ethayarajh et al. 2024, 2402.01306",
        "like kto without its second forward pass, or if the cache has no KL completions",
        _SUMS),
    "apo_zero_unpaired": Loss(unpaired.kto_no_kl, "the same as kto_no_kl",
        "D'Oosterlinck et al. 2024, 2408.06266, eq. 7",
        "good responses are better than what the policy writes; TRL's name for kto_no_kl",
        _SUMS),
    "bco_unpaired": Loss(unpaired.bco_unpaired, "-log s(beta u) if good, -log s(-beta u) if bad",
        "Jung et al. 2024, 2404.04656",
        "labels are reliable, and a response far on the wrong side should count most",
        _SUMS),
}  # fmt: skip
"""Losses of unpaired responses that are good or bad."""

EVERY_LOSS = LOSSES | UNPAIRED_LOSSES


def named(name: str) -> Loss:
    """The loss with this name.

    Raises:
        ValueError: there is no such loss. The message suggests a similar name.
    """
    if name not in EVERY_LOSS:
        close = difflib.get_close_matches(name, EVERY_LOSS, n=1, cutoff=0.5)
        advice = f"did you mean {close[0]!r}?" if close else "see reflogp train --list-losses"
        raise ValueError(f"there is no loss {name!r} ({advice})")
    return EVERY_LOSS[name]
