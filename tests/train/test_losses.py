"""What holds for every loss, and what holds between losses."""

import math
from typing import Any

import pytest
import torch

from reflogp.stages.train.losses.arguments import check_arguments, parameters
from reflogp.stages.train.losses.inputs import PairLogps
from reflogp.stages.train.losses.objective import objective, wpo_weights
from reflogp.stages.train.losses.registry import LOSSES
from tests.train.pairs import pairs_of, random_pairs

EVERY = pytest.mark.parametrize("name", LOSSES)


def loss_of(name, pairs, **arguments):
    return LOSSES[name].function(pairs, **arguments)


def pair(chosen: Any = 0.0, rejected: Any = 0.0, tokens=(10, 10)) -> PairLogps:
    """Pairs of given log-ratios, against a reference of -100 and -120 nats."""
    c, r = (torch.atleast_1d(torch.as_tensor(x, dtype=torch.float64)) for x in (chosen, rejected))
    c, r = torch.broadcast_tensors(c, r)
    reference = torch.cat([torch.full_like(c, -100), torch.full_like(r, -120)])
    lengths = torch.tensor(tokens).repeat_interleave(len(c))
    whole = PairLogps.stacked(torch.cat([c, r]) + reference, reference, lengths)
    return whole._replace(shared=whole)


@EVERY
def test_a_loss_gives_a_finite_float64_for_each_pair(name):
    loss = loss_of(name, pairs_of(*random_pairs()))
    assert loss.shape == (4,)
    assert loss.dtype == torch.float64
    assert loss.isfinite().all()


@EVERY
def test_the_gradient_is_that_of_finite_differences(name):
    policy, reference, lengths = random_pairs(batch=2, seed=1)

    def of_policy(logps):
        return loss_of(name, pairs_of(logps, reference, lengths))

    assert torch.autograd.gradcheck(of_policy, policy.requires_grad_(), atol=1e-6, rtol=1e-5)


TEN_THOUSAND = [(c, r) for c in (1e4, 0.0, -1e4) for r in (1e4, 0.0, -1e4)]


@EVERY
def test_log_ratios_of_ten_thousand_nats_give_finite_losses_and_gradients(name):
    # log-probs stay below 0, as they are: it is the reference that is far below or above
    for logratios in TEN_THOUSAND:
        assert_finite(name, [-2e4, -2e4], [-2e4 - x for x in logratios])


@EVERY
def test_responses_of_probability_one_or_next_to_zero_give_finite_losses_and_gradients(name):
    for policy in ([0.0, 0.0], [0.0, -1e4], [-1e4, 0.0], [-1e4, -1e4]):
        assert_finite(name, policy, [-5.0, -6.0])


def assert_finite(name, policy, reference):
    logps = torch.tensor(policy, dtype=torch.float64, requires_grad=True)
    ref_logps = torch.tensor(reference, dtype=torch.float64)
    whole = PairLogps.stacked(logps, ref_logps, torch.tensor([7, 5]))
    loss = loss_of(name, whole._replace(shared=whole))
    loss.sum().backward()
    assert logps.grad is not None
    assert loss.isfinite().all(), (policy, reference)
    assert logps.grad.isfinite().all(), (policy, reference)


FIELDS = {
    "reference": ("ref_chosen", "ref_rejected"),
    "lengths": ("chosen_tokens", "rejected_tokens"),
    "tokens": ("shared",),
}


@EVERY
@pytest.mark.parametrize("need", FIELDS)
def test_a_loss_uses_what_it_says_it_needs_and_nothing_else(name, need):
    pairs = pairs_of(*random_pairs(seed=2))
    other = pairs_of(*random_pairs(seed=3))
    changed = pairs._replace(**{field: getattr(other, field) for field in FIELDS[need]})
    same = torch.equal(loss_of(name, pairs), loss_of(name, changed))
    assert same == (need not in LOSSES[name].needs)


@EVERY
def test_only_losses_that_need_the_batch_depend_on_its_other_pairs(name):
    policy, reference, lengths = random_pairs(seed=4)
    together = loss_of(name, pairs_of(policy, reference, lengths))
    alone = [
        loss_of(name, pairs_of(policy[rows], reference[rows], lengths[rows]))
        for rows in ([i, i + 4] for i in range(4))
    ]
    assert torch.allclose(together, torch.cat(alone)) == ("batch" not in LOSSES[name].needs)


@EVERY
def test_the_defaults_are_within_their_own_ranges(name):
    function = LOSSES[name].function
    own = {key: p.default for key, p in parameters(function).items() if key != "beta"}
    assert check_arguments([function], own) == own
    assert (function.__doc__ or "").strip()


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "discopop"])
def test_from_the_reference_a_step_down_the_gradient_favours_chosen(name):
    policy = torch.tensor([-100.0, -120.0], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([-100.0, -120.0], dtype=torch.float64)
    lengths = torch.tensor([10, 10])
    whole = PairLogps.stacked(policy, reference, lengths)
    loss_of(name, whole._replace(shared=whole)).sum().backward()
    assert policy.grad is not None
    chosen, rejected = policy.grad.tolist()
    assert chosen < rejected


LOG_TWO = math.log(2)
# 10 tokens each, of -10 and -12 nats: what is not named here is log 2
AT_THE_REFERENCE = {
    "ipo": 5**2,
    "hinge": 1,
    "exo": 0.5 * (math.log(0.5 / 0.999) + math.log(0.5 / 0.001)),
    "discopop": 0.5 * LOG_TWO + 0.5,
    "rpo": LOG_TWO + 10,
    "apo_zero": 1,
    "apo_down": 1,
    "nca": 2 * LOG_TWO,
    "bco": 2 * LOG_TWO,
    "sppo": 2 * 500**2,
    "sft": 10,
    "simpo": math.log1p(math.exp(-(2 * 2 - 1))),
    # odds are probabilities there, to five digits
    "orpo": 10 + 0.1 * math.log1p(math.exp(-2)),
    "cpo": math.log1p(math.exp(-0.1 * 20)) + 10,
}


@EVERY
def test_a_policy_equal_to_the_reference_has_log_two_or_the_losss_own_value(name):
    expected = AT_THE_REFERENCE.get(name, LOG_TWO)
    found = loss_of(name, pair(chosen=[0.0, 0.0]))
    assert found.tolist() == pytest.approx([expected] * 2, rel=1e-6)


def slope_of_discopop_at_zero(tau):
    margin = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    loss_of("discopop", pair(margin), beta=1.0, tau=tau).sum().backward()
    assert margin.grad is not None
    return margin.grad.item()


def test_discopop_lowers_margins_at_first_unless_tau_is_above_a_third_of_one_less_log_two():
    default = parameters(LOSSES["discopop"].function)["tau"].default
    expected = (1 - LOG_TWO) / (4 * default) - 0.75
    assert slope_of_discopop_at_zero(default) == pytest.approx(expected)
    assert expected > 0
    assert slope_of_discopop_at_zero(0.1022) > 0 > slope_of_discopop_at_zero(0.1024)


def test_bco_with_the_batchs_shift_does_not_depend_on_a_shift_of_all_rewards():
    pairs = pairs_of(*random_pairs(seed=12))
    more = pairs._replace(
        policy_chosen=pairs.policy_chosen + 50, policy_rejected=pairs.policy_rejected + 50
    )
    found = [loss_of("bco", some, beta=0.1, batch_shift=True) for some in (pairs, more)]
    assert torch.allclose(*found)
    assert not torch.allclose(loss_of("bco", pairs, beta=0.1), loss_of("bco", more, beta=0.1))
    # of one pair the shift leaves its margin alone
    alone = pair(3.0, -1.0)
    shifted = loss_of("bco", alone, beta=0.1, batch_shift=True)
    assert shifted.item() == pytest.approx(2 * loss_of("dpo", alone, beta=0.05).item())


def test_bco_with_the_batchs_shift_stays_an_upper_bound_of_dpo():
    pairs = pairs_of(*random_pairs(seed=13))
    bound = loss_of("bco", pairs, beta=0.5, batch_shift=True)
    assert (bound >= loss_of("dpo", pairs, beta=0.5)).all()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("cdpo", {"label_smoothing": 0.0}),
        ("robust", {"label_smoothing": 0.0}),
        ("rdpo", {"alpha": 0.0}),
        ("ld_dpo", {"ld_alpha": 1.0}),
        ("dpop", {"dpop_lambda": 0.0}),
        ("rpo", {"rpo_alpha": 0.0}),
        ("fdpo_alpha", {"alpha": 1e-9}),
    ],
)
def test_the_limit_of_each_generalization_is_dpo(name, arguments):
    pairs = pairs_of(*random_pairs(seed=5))
    expected = loss_of("dpo", pairs, beta=0.3)
    assert torch.allclose(loss_of(name, pairs, beta=0.3, **arguments), expected, rtol=1e-6)


def swapped(pairs):
    order = ("policy_rejected", "policy_chosen", "ref_rejected", "ref_chosen", "rejected_tokens",
             "chosen_tokens")  # fmt: skip
    return PairLogps(*(getattr(pairs, field) for field in order))


def test_swapping_the_labels_swaps_what_smoothing_mixes():
    pairs, e = pairs_of(*random_pairs(seed=6)), 0.2
    kept, flipped = loss_of("dpo", pairs), loss_of("dpo", swapped(pairs))
    mixed = (1 - e) * kept + e * flipped
    assert torch.allclose(loss_of("cdpo", pairs, label_smoothing=e), mixed)
    # robust is unbiased: over labels flipped with probability e it is the loss of the true ones
    of_kept = loss_of("robust", pairs, label_smoothing=e)
    of_flipped = loss_of("robust", swapped(pairs), label_smoothing=e)
    assert torch.allclose((1 - e) * of_kept + e * of_flipped, kept)


@pytest.mark.parametrize("name", ["dpo", "dpo_norm", "rdpo", "fdpo_js", "fdpo_forward_kl"])
def test_dpo_of_a_pair_and_of_the_swapped_pair_are_probabilities_that_sum_to_one(name):
    pairs = pairs_of(*random_pairs(seed=7), shared=False)
    both = torch.exp(-loss_of(name, pairs)) + torch.exp(-loss_of(name, swapped(pairs)))
    assert torch.allclose(both, torch.ones_like(both))


def test_cdpo_is_least_where_the_preference_is_as_sure_as_the_labels():
    margin = torch.tensor(math.log(0.8 / 0.2) / 0.1, dtype=torch.float64, requires_grad=True)
    loss_of("cdpo", pair(margin.reshape(1)), label_smoothing=0.2).sum().backward()
    assert margin.grad is not None
    assert margin.grad.item() == pytest.approx(0, abs=1e-12)


def test_fdpo_alpha_tends_to_the_forward_kl():
    pairs = pairs_of(*random_pairs(seed=8))
    near = loss_of("fdpo_alpha", pairs, alpha=1 - 1e-9)
    assert torch.allclose(near, loss_of("fdpo_forward_kl", pairs), rtol=1e-6)


def test_bco_is_an_upper_bound_of_dpo():
    pairs = pairs_of(*random_pairs(seed=9))
    assert (loss_of("bco", pairs, beta=0.5) >= loss_of("dpo", pairs, beta=0.5)).all()


def test_the_tail_of_the_longer_response_does_not_count_at_ld_alpha_zero():
    policy, reference, lengths = random_pairs(seed=10)
    loss = loss_of("ld_dpo", pairs_of(policy, reference, lengths), ld_alpha=0.0)
    beyond = torch.arange(9) >= torch.minimum(*lengths.chunk(2)).repeat(2)[:, None]
    altered = pairs_of(policy - 5 * beyond, reference, lengths)
    assert torch.equal(loss_of("ld_dpo", altered, ld_alpha=0.0), loss)
    with pytest.raises(ValueError, match="shared is None"):
        loss_of("ld_dpo", altered._replace(shared=None))


def test_the_objective_is_the_weighted_sum_and_hands_each_loss_its_own_arguments():
    pairs = pairs_of(*random_pairs(seed=11))
    found = objective(
        {"cdpo": 1.0, "sft": 0.2, "rdpo": 2.0}, beta=0.3,
        arguments={"label_smoothing": 0.25, "alpha": 0.5},
    )(pairs)  # fmt: skip
    expected = (
        loss_of("cdpo", pairs, beta=0.3, label_smoothing=0.25)
        + 0.2 * loss_of("sft", pairs)
        + 2 * loss_of("rdpo", pairs, beta=0.3, alpha=0.5)
    )
    assert torch.allclose(found.loss, expected)
    rpo = objective({"dpo": 1.0, "sft": 0.7}, beta=0.1)(pairs).loss
    assert torch.allclose(rpo, loss_of("rpo", pairs, rpo_alpha=0.7))


def test_rewards_are_log_ratios_or_without_a_reference_log_probs_as_the_paper_has_them():
    logps = {"policy_chosen": [-20.0], "policy_rejected": [-40.0], "ref_chosen": [-23.0],
             "ref_rejected": [-36.0], "chosen_tokens": [4], "rejected_tokens": [10]}  # fmt: skip
    tensors: dict[str, Any] = {key: torch.tensor(value) for key, value in logps.items()}
    pairs = PairLogps(**tensors)
    for weights, chosen, rejected, per_token in (
        ({"dpo": 1.0}, 3.0, -4.0, 0.75 + 0.4),
        ({"sft": 0.2, "dpo": 1.0}, 3.0, -4.0, 0.75 + 0.4),
        ({"cpo": 1.0}, -20.0, -40.0, -5.0 + 4.0),
        ({"simpo": 1.0}, -5.0, -4.0, -5.0 + 4.0),
    ):
        found = objective(weights, beta=0.5)(pairs)
        assert found.chosen_rewards.item() == pytest.approx(0.5 * chosen)
        assert found.rejected_rewards.item() == pytest.approx(0.5 * rejected)
        assert found.margins_per_token.item() == pytest.approx(0.5 * per_token)


@EVERY
def test_rewards_carry_no_gradient(name):
    policy, reference, lengths = random_pairs()
    result = objective({name: 1.0}, beta=0.1)(pairs_of(policy.requires_grad_(), reference, lengths))
    assert result.loss.requires_grad
    assert not any(part.requires_grad for part in result[1:])


def test_wpo_weighs_each_pair_by_its_aligned_probability_and_not_in_the_gradient():
    # means of -0.5 and -1.0 nats a token, less -0.3 and -0.2 of the squares: weight exp(-1)
    policy = torch.tensor([[-0.25, -0.75], [-1.0, -1.0]], dtype=torch.float64, requires_grad=True)
    squares = torch.tensor([[-0.5, -0.1], [-0.1, -0.3]], dtype=torch.float64)
    reference, lengths = torch.zeros_like(squares), torch.tensor([2, 2])
    pairs = pairs_of(policy, reference, lengths, log_squares=squares)
    assert wpo_weights(pairs).tolist() == pytest.approx([math.exp(-1.0)])
    (plain,) = torch.autograd.grad(loss_of("dpo", pairs).sum(), policy, retain_graph=True)
    weighted = objective({"dpo": 1.0}, beta=0.1, weighting="wpo")(pairs).loss
    (found,) = torch.autograd.grad(weighted.sum(), policy)
    assert torch.allclose(found, math.exp(-1.0) * plain)


def test_a_token_that_the_policy_samples_has_a_wpo_weight_of_one_on_average():
    probabilities = torch.rand(50, generator=torch.Generator().manual_seed(0)).double().softmax(0)
    squares = probabilities.square().sum().log()
    # every word as the chosen response, beside a rejected one whose weight is 1
    logps, one = probabilities.log(), torch.full((50,), 0.0).double()
    pairs = PairLogps.stacked(
        torch.cat([logps, one + squares]), torch.zeros(100), torch.ones(100, dtype=torch.int64)
    )._replace(chosen_log_squares=one + squares, rejected_log_squares=one + squares)
    aligned = torch.exp(pairs.policy_chosen - squares)
    assert (probabilities * aligned).sum().item() == pytest.approx(1)
    # what is likelier than that counts as much as in DPO, and no more
    assert aligned.max() > 1
    assert torch.allclose(wpo_weights(pairs), aligned.clamp(max=1))


def test_wpo_without_the_squares_is_refused():
    with pytest.raises(ValueError, match="chosen_log_squares is None"):
        objective({"dpo": 1.0}, beta=0.1, weighting="wpo")(pairs_of(*random_pairs()))
