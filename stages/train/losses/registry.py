"""Every loss over pairs by its name: function, formula, paper, needs."""

import difflib
from collections.abc import Callable
from typing import Literal, NamedTuple

from torch import Tensor

from stages.train.losses import anchored, divergences, length, pairwise, reference_free

Need = Literal["reference", "lengths", "tokens", "batch"]
"""tokens is `PairLogps.shared`. The rest is said in LETTERS."""


LETTERS = (
    "c, r: log(pi_theta / pi_ref) of the chosen and the rejected response; m = c - r;\n"
    "C, R: log pi_theta; |c|, |r|: tokens; s: logistic sigmoid; e: label_smoothing.\n"
    "Needs: reference: cached sums of log-probs; tokens: those of each token;\n"
    "lengths: token counts; batch: compares pairs, so wants a large --batch-size.\n"
)
"""What stands in formulas and needs."""


class Loss(NamedTuple):
    """A loss and what there is to know of it.

    Attributes:
        function: takes PairLogps and keyword arguments; gives float64 [batch].
        formula: of one pair, in the letters above.
        paper: authors, year, arXiv number, equation.
        needs: what of PairLogps it uses beside the policy's log-probs.
        mean_reward: its reward is beta times the mean log-prob of a token (SimPO), not the sum.
    """

    function: Callable[..., Tensor]
    formula: str
    paper: str
    needs: frozenset[Need]
    mean_reward: bool = False


def _needs(*needs: Need) -> frozenset[Need]:
    return frozenset(needs)


_SUMS = _needs("reference")
_LENGTHS = _needs("reference", "lengths")
_BATCH = _needs("reference", "batch")

LOSSES: dict[str, Loss] = {
    "dpo": Loss(pairwise.dpo, "-log s(beta m)",
                "Rafailov et al. 2023, 2305.18290, eq. 7", _SUMS),
    "cdpo": Loss(pairwise.cdpo, "-(1-e) log s(beta m) - e log s(-beta m)",
                 "Mitchell 2023, A note on DPO with noisy preferences", _SUMS),
    "robust": Loss(pairwise.robust, "(-(1-e) log s(beta m) + e log s(-beta m)) / (1-2e)",
                   "Chowdhury et al. 2024, 2403.00409", _SUMS),
    "ipo": Loss(pairwise.ipo, "(c/|c| - r/|r| - 1/(2 beta))^2",
                "Azar et al. 2023, 2310.12036, eq. 17", _LENGTHS),
    "hinge": Loss(pairwise.hinge, "max(0, 1 - beta m)",
                  "Zhao et al. 2023, 2305.10425; Liu et al. 2023, 2309.06657", _SUMS),
    "exo": Loss(pairwise.exo, "KL(s(beta m) || 1-e)",
                "Ji et al. 2024, 2402.00856, eq. 16", _SUMS),
    "discopop": Loss(pairwise.discopop, "b exp(-beta m) - (1-b) log s(beta m), b = s(beta m/tau)",
                     "Lu et al. 2024, 2406.08414, eq. 5", _SUMS),
    "aot": Loss(pairwise.aot, "-log s(beta (sorted(C-R) - sorted(ref C-R)))",
                "Melnyk et al. 2024, 2406.05882", _BATCH),
    "aot_unpaired": Loss(pairwise.aot_unpaired, "-log s(beta (sorted(c) - sorted(r)))",
                         "Melnyk et al. 2024, 2406.05882", _BATCH),
    "dpo_norm": Loss(length.dpo_norm, "-log s(beta (c/|c| - r/|r|))",
                     "Lambert et al. 2024, 2411.15124", _LENGTHS),
    "rdpo": Loss(length.rdpo, "-log s(beta m + alpha (|c| - |r|))",
                 "Park et al. 2024, 2403.19159", _LENGTHS),
    "ld_dpo": Loss(length.ld_dpo, "-log s(beta (alpha m + (1-alpha) m of the shared length))",
                   "Liu et al. 2024, 2409.06411", _needs("reference", "tokens")),
    "dpop": Loss(anchored.dpop, "-log s(beta (m - lambda max(0, -c)))",
                 "Pal et al. 2024, 2402.13228", _SUMS),
    "rpo": Loss(anchored.rpo, "-log s(beta m) - alpha C/|c|",
                "Pang et al. 2024, 2404.19733", _LENGTHS),
    "apo_zero": Loss(anchored.apo_zero, "s(-beta c) + s(beta r)",
                     "D'Oosterlinck et al. 2024, 2408.06266, eq. 7", _SUMS),
    "apo_down": Loss(anchored.apo_down, "s(beta c) + s(-beta m)",
                     "D'Oosterlinck et al. 2024, 2408.06266, eq. 8", _SUMS),
    "nca": Loss(anchored.nca, "-log s(beta c) - (log s(-beta c) + log s(-beta r))/2",
                "Chen et al. 2024, 2402.05369", _SUMS),
    "bco": Loss(anchored.bco, "-log s(beta c) - log s(-beta r)",
                "Jung et al. 2024, 2404.04656", _SUMS),
    "sppo": Loss(anchored.sppo, "(c - 1/(2 beta))^2 + (r + 1/(2 beta))^2",
                 "Wu et al. 2024, 2405.00675, eq. 4.7", _SUMS),
    "fdpo_forward_kl": Loss(divergences.fdpo_forward_kl, "-log s(beta (exp(-r) - exp(-c)))",
                            "Wang et al. 2023, 2309.16240", _SUMS),
    "fdpo_js": Loss(divergences.fdpo_js, "-log s(beta (log s(c) - log s(r)))",
                    "Wang et al. 2023, 2309.16240", _SUMS),
    "fdpo_alpha": Loss(divergences.fdpo_alpha,
                       "-log s(beta (exp(-alpha r) - exp(-alpha c)) / alpha)",
                       "Wang et al. 2023, 2309.16240", _SUMS),
    "sft": Loss(reference_free.sft, "-C/|c|",
                "a term to add, as in Pang et al. 2024, 2404.19733", _needs("lengths")),
    "simpo": Loss(reference_free.simpo, "-log s(beta (C/|c| - R/|r|) - gamma)",
                  "Meng et al. 2024, 2405.14734, eq. 6", _needs("lengths"), mean_reward=True),
    "orpo": Loss(reference_free.orpo, "-C/|c| - beta log s(log odds ratio of C/|c|, R/|r|)",
                 "Hong et al. 2024, 2403.07691, eq. 6, 7", _needs("lengths"), mean_reward=True),
    "cpo": Loss(reference_free.cpo, "-log s(beta (C - R)) - alpha C/|c|",
                "Xu et al. 2024, 2401.08417", _needs("lengths")),
}  # fmt: skip
"""In the order of the table that `reflogp train --list-losses` prints."""


def named(name: str) -> Loss:
    """The loss of that name.

    Raises:
        ValueError: there is none; says which was perhaps meant.
    """
    if name not in LOSSES:
        close = difflib.get_close_matches(name, LOSSES, n=1, cutoff=0.5)
        advice = f"did you mean {close[0]!r}?" if close else "see reflogp train --list-losses"
        raise ValueError(f"there is no loss {name!r} ({advice})")
    return LOSSES[name]
