"""Every loss as a pure function of log-probs: `reflogp.losses.dpo(pairs, beta=0.1)`.

Losses of pairs take `PairLogps`, losses of unpaired rows take `UnpairedLogps`. Both return float64
[batch], one loss per pair or row. `reflogp train --list-losses` prints formulas, papers and
arguments.
"""

from reflogp.stages.train.losses.anchored import (
    apo_down,
    apo_zero,
    bco,
    dpop,
    nca,
    rpo,
    sppo,
)
from reflogp.stages.train.losses.divergences import fdpo_alpha, fdpo_forward_kl, fdpo_js
from reflogp.stages.train.losses.inputs import PairLogps, UnpairedLogps
from reflogp.stages.train.losses.length import dpo_norm, ld_dpo, rdpo
from reflogp.stages.train.losses.pairwise import (
    aot,
    aot_unpaired,
    cdpo,
    discopop,
    dpo,
    exo,
    hinge,
    ipo,
    robust,
)
from reflogp.stages.train.losses.reference_free import cpo, orpo, sft, simpo
from reflogp.stages.train.losses.unpaired import bco_unpaired, kto, kto_no_kl

apo_zero_unpaired = kto_no_kl

__all__ = [
    "PairLogps",
    "UnpairedLogps",
    "aot",
    "aot_unpaired",
    "apo_down",
    "apo_zero",
    "apo_zero_unpaired",
    "bco",
    "bco_unpaired",
    "cdpo",
    "cpo",
    "discopop",
    "dpo",
    "dpo_norm",
    "dpop",
    "exo",
    "fdpo_alpha",
    "fdpo_forward_kl",
    "fdpo_js",
    "hinge",
    "ipo",
    "kto",
    "kto_no_kl",
    "ld_dpo",
    "nca",
    "orpo",
    "rdpo",
    "robust",
    "rpo",
    "sft",
    "simpo",
    "sppo",
]
