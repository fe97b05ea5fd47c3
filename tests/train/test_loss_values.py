"""Each loss against values worked out by hand from its paper's formula, in plain floats."""

import math

import pytest
import torch

from reflogp.stages.train.losses.inputs import PairLogps
from reflogp.stages.train.losses.registry import LOSSES

# log-ratios: chosen +3, rejected -4, so the margin is 7
C, R, REF_C, REF_R, CHOSEN_TOKENS, REJECTED_TOKENS = -20.0, -40.0, -23.0, -36.0, 4, 10
# of the first 4 tokens: rejected -12 against -10, so -2, and the margin is 5
SHARED_R, SHARED_REF_R = -12.0, -10.0


def s(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def log_s(x: float) -> float:
    return math.log(s(x))


def odds(p: float) -> float:
    return p / (1 - p)


def pairs() -> PairLogps:
    def of(*logps, lengths, shared=None):
        column = torch.tensor(logps, dtype=torch.float64)
        return PairLogps.stacked(column[:2], column[2:], torch.tensor(lengths), shared)

    shared = of(C, SHARED_R, REF_C, SHARED_REF_R, lengths=[CHOSEN_TOKENS, CHOSEN_TOKENS])
    return of(C, R, REF_C, REF_R, lengths=[CHOSEN_TOKENS, REJECTED_TOKENS], shared=shared)


VALUES = {
    ("dpo", ""): -log_s(0.7),
    ("dpo", "beta=0.5"): -log_s(3.5),
    ("cdpo", ""): -0.9 * log_s(0.7) - 0.1 * log_s(-0.7),
    ("robust", "label_smoothing=0.2"): (-0.8 * log_s(0.7) + 0.2 * log_s(-0.7)) / 0.6,
    ("ipo", ""): (3 / 4 + 4 / 10 - 5) ** 2,
    ("ipo", "per_token=False"): (7 - 5) ** 2,
    ("hinge", ""): 1 - 0.05 * 7,
    ("hinge", "beta=0.2"): 0,
    ("exo", "label_smoothing=0.1"): s(0.7) * (log_s(0.7) - math.log(0.9))
    + s(-0.7) * (log_s(-0.7) - math.log(0.1)),
    ("discopop", ""): s(7) * math.exp(-0.35) - (1 - s(7)) * log_s(0.35),
    ("aot", ""): -log_s(0.7),
    ("aot_unpaired", ""): -log_s(0.7),
    ("dpo_norm", ""): -log_s(5 * (3 / 4 + 4 / 10)),
    ("rdpo", "alpha=0.05"): -log_s(0.7 - 0.3),
    ("ld_dpo", ""): -log_s(0.1 * (0.5 * 7 + 0.5 * 5)),
    ("dpop", ""): -log_s(0.3 * 7),
    ("rpo", "rpo_alpha=2"): -log_s(0.7) + 2 * 20 / 4,
    ("apo_zero", ""): s(-0.3) + s(-0.4),
    ("apo_down", ""): s(0.3) + s(-0.7),
    ("nca", ""): -log_s(0.03) - 0.5 * log_s(-0.03) - 0.5 * log_s(0.04),
    ("bco", ""): -log_s(0.03) - log_s(0.04),
    # rewards 0.03 and -0.04 have a mean of -0.005
    ("bco", "batch_shift=True"): -log_s(0.035) - log_s(0.035),
    ("sppo", ""): (3 - 500) ** 2 + (-4 + 500) ** 2,
    ("fdpo_forward_kl", ""): -log_s(0.1 * (math.exp(4) - math.exp(-3))),
    ("fdpo_js", ""): -log_s(0.1 * (log_s(3) - log_s(-4))),
    ("fdpo_alpha", ""): -log_s(0.1 * 2 * (math.exp(2) - math.exp(-1.5))),
    ("sft", ""): 5,
    ("simpo", ""): -log_s(2 * (-5 + 4) - 1),
    ("orpo", ""): 5 - 0.1 * log_s(math.log(odds(math.exp(-5)) / odds(math.exp(-4)))),
    ("cpo", "cpo_alpha=0.5"): -log_s(0.1 * 20) + 0.5 * 5,
}


def read(text: str) -> dict[str, float]:
    given = (part.split("=") for part in text.split(",") if part)
    return {name: value == "True" if value in ("True", "False") else float(value)
            for name, value in given}  # fmt: skip


@pytest.mark.parametrize(("name", "arguments"), VALUES)
def test_a_loss_has_the_value_of_its_formula(name, arguments):
    found = LOSSES[name].function(pairs(), **read(arguments))
    assert found.item() == pytest.approx(VALUES[name, arguments], rel=1e-9)


def test_every_loss_has_a_value():
    assert {name for name, _ in VALUES} == set(LOSSES)


def test_margins_of_0_10_and_20_nats_at_beta_a_tenth():
    policy = torch.tensor([-0.5, -10.0, -1.0, -0.1, -30.0, -21.0])
    reference = torch.tensor([-0.5, -10.1, -0.1, -0.1, -20.1, -0.1])
    pairs = PairLogps.stacked(policy, reference, torch.ones(6, dtype=torch.int64))
    loss = LOSSES["dpo"].function(pairs)
    assert loss.tolist() == pytest.approx([0.6931, 0.3133, 0.1269], abs=1e-4)


def test_dpop_punishes_a_chosen_response_that_got_less_likely_even_if_the_margin_grew():
    chosen, rejected = torch.tensor([-2.0]), torch.tensor([-9.0])
    zero, lengths = torch.zeros(1), torch.ones(1, dtype=torch.int64)
    fallen = PairLogps(chosen, rejected, zero, zero, lengths, lengths)
    found = LOSSES["dpop"].function(fallen, beta=0.1, dpop_lambda=5.0)
    assert found.item() == pytest.approx(-log_s(0.1 * (7 - 5 * 2)))


def test_aot_compares_quantiles_and_not_pairs():
    # margins 1 and 5 against reference margins 4 and 0: sorted, 1 - 0 and 5 - 4
    policy, reference = torch.tensor([1.0, 5.0, 0.0, 0.0]), torch.tensor([4.0, 0.0, 0.0, 0.0])
    batch = PairLogps.stacked(policy, reference, torch.ones(4, dtype=torch.int64))
    found = LOSSES["aot"].function(batch, beta=0.5)
    assert found.tolist() == pytest.approx([-log_s(0.5)] * 2)
    # log-ratios of chosen -3 and 5, of rejected 0 and 0
    found = LOSSES["aot_unpaired"].function(batch, beta=0.5)
    assert found.tolist() == pytest.approx([-log_s(-1.5), -log_s(2.5)])
