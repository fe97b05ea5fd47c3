"""Losses of unpaired responses: by hand, by finite differences, and beside TRL's KTOTrainer."""

import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from trl import KTOTrainer

from reflogp.stages.train.losses.arguments import check_arguments, parameters
from reflogp.stages.train.losses.inputs import UnpairedLogps
from reflogp.stages.train.losses.objective import objective
from reflogp.stages.train.losses.registry import UNPAIRED_LOSSES
from reflogp.stages.train.losses.unpaired import kl_estimate
from tests.train.test_losses_trl import ACCELERATOR, assert_equal_with_gradient

EVERY = pytest.mark.parametrize("name", UNPAIRED_LOSSES)


def rows_of(logratios, desirable, kl=0.0) -> UnpairedLogps:
    """Rows with these log-ratios, good where `desirable`."""
    ratios = torch.as_tensor(logratios, dtype=torch.float64)
    reference = torch.linspace(-90, -30, len(ratios), dtype=torch.float64)
    point = torch.tensor(kl, dtype=torch.float64)
    tokens = torch.full((len(ratios),), 30)
    return UnpairedLogps(reference + ratios, reference, tokens, torch.tensor(desirable), point)


def loss_of(name, rows, **arguments):
    return UNPAIRED_LOSSES[name].function(rows, **arguments)


def s(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# a good response 3 nats above the reference, a bad one 4 below; the reference point is 2
VALUES = [
    ("kto", {}, [s(-0.1), s(-0.6)]),
    ("kto", {"beta": 0.5, "desirable_weight": 1.5}, [1.5 * s(-0.5), s(-3.0)]),
    ("kto", {"undesirable_weight": 0.5}, [s(-0.1), 0.5 * s(-0.6)]),
    ("kto_no_kl", {"undesirable_weight": 2.0}, [s(-0.3), 2 * s(-0.4)]),
    ("apo_zero_unpaired", {}, [s(-0.3), s(-0.4)]),
    ("bco_unpaired", {}, [-math.log(s(0.03)), -math.log(s(0.04))]),
]


@pytest.mark.parametrize(("name", "arguments", "expected"), VALUES)
def test_a_loss_has_the_value_of_its_formula(name, arguments, expected):
    found = loss_of(name, rows_of([3.0, -4.0], [True, False], kl=2.0), **arguments)
    assert found.tolist() == pytest.approx(expected)


@EVERY
def test_a_good_response_below_the_reference_costs_what_a_bad_one_above_it_does(name):
    good, bad = loss_of(name, rows_of([-3.0, 3.0], [True, False])).tolist()
    assert good == pytest.approx(bad)
    assert good > loss_of(name, rows_of([0.0], [True])).item()


@EVERY
def test_the_gradient_is_that_of_finite_differences(name):
    def of_policy(logps):
        rows = rows_of([0.0, 0.0, 0.0], [True, False, False], kl=0.3)
        return loss_of(name, rows._replace(policy=rows.reference + logps))

    ratios = torch.tensor([0.5, -2.0, 1.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(of_policy, ratios)


@EVERY
def test_log_ratios_of_ten_thousand_nats_give_finite_losses_and_gradients(name):
    ratios = torch.tensor([1e4, -1e4, 1e4, -1e4], dtype=torch.float64, requires_grad=True)
    loss = loss_of(name, rows_of(ratios, [True, True, False, False], kl=5.0))
    loss.sum().backward()
    assert ratios.grad is not None
    assert loss.isfinite().all()
    assert ratios.grad.isfinite().all()


@EVERY
def test_only_a_loss_that_says_so_needs_the_reference_point(name):
    rows = rows_of([3.0, -4.0], [True, False], kl=2.0)
    same = torch.equal(loss_of(name, rows), loss_of(name, rows._replace(kl=rows.kl + 1)))
    assert same == ("kl" not in UNPAIRED_LOSSES[name].needs)


@EVERY
def test_the_defaults_are_within_their_own_ranges(name):
    function = UNPAIRED_LOSSES[name].function
    own = {key: p.default for key, p in parameters(function).items() if key != "beta"}
    assert check_arguments([function], own) == own


def test_kto_lets_go_of_what_is_far_off_and_bco_does_not():
    ratios = torch.tensor([-500.0], dtype=torch.float64, requires_grad=True)
    for name, gradient in (("kto", 0.0), ("bco_unpaired", -0.1)):
        (found,) = torch.autograd.grad(loss_of(name, rows_of(ratios, [True]), beta=0.1), ratios)
        assert found.item() == pytest.approx(gradient, abs=1e-12)


def test_the_reference_point_is_never_negative_and_carries_no_gradient():
    mean = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    assert kl_estimate(mean).item() == 4
    assert kl_estimate(-mean).item() == 0
    assert not kl_estimate(mean).requires_grad


def test_rewards_are_beta_times_log_ratios_and_gains_are_above_the_reference_point():
    found = objective({"kto": 2.0, "bco_unpaired": 1.0}, beta=0.5)(
        rows_of([3.0, -4.0], [True, False], kl=2.0)
    )
    expected = [2 * s(-0.5) - math.log(s(1.5)), 2 * s(-3.0) - math.log(s(2.0))]
    assert found.loss.tolist() == pytest.approx(expected)
    assert found.rewards.tolist() == pytest.approx([1.5, -2.0])
    assert found.gains.tolist() == pytest.approx([0.5, -3.0])


@pytest.mark.parametrize("mismatched", [[2.0, -1.0, 0.5, 3.0], [-2.0, -1.0, 0.5, -3.0]])
@pytest.mark.parametrize("name", ["kto", "apo_zero_unpaired"])
def test_a_loss_equals_that_of_trls_kto_trainer(name, mismatched):
    generator = torch.Generator().manual_seed(5)
    logps, reference = -3 * torch.rand(2, 8, 9, generator=generator)
    logps.requires_grad_()
    desirable = torch.tensor([True, False, False, True, True, False, True, False])
    real = torch.ones(8, 10, dtype=torch.long)
    crossed = torch.tensor(mismatched)

    def model(**_):
        nothing = torch.zeros(8, 9)
        return SimpleNamespace(
            log_probs=logps, entropy=nothing, mean_logits=nothing, is_top1=nothing > 0
        )

    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=ACCELERATOR, aux_loss_enabled=False,
        precompute_ref_logps=True, calculate_KL=name == "kto", beta=0.3, loss_type=name,
        _tp_size=1, desirable_weight=1.2, undesirable_weight=0.8, _total_train_tokens=0,
        _metrics={"train": defaultdict(list)}, _compute_kl_logps=lambda model, batch: crossed,
    )  # fmt: skip
    inputs = {
        "input_ids": real, "attention_mask": real, "completion_mask": real, "label": desirable,
        "ref_logps": reference.sum(1), "ref_KL_logps": torch.zeros(4),
    }  # fmt: skip
    theirs = KTOTrainer._compute_loss(trainer, model, inputs, return_outputs=False)
    rows = UnpairedLogps(
        logps.sum(1), reference.sum(1), real.sum(1), desirable, kl_estimate(crossed.mean())
    )
    weights = {"desirable_weight": 1.2, "undesirable_weight": 0.8}
    ours = objective({name: 1.0}, beta=0.3, arguments=weights)(rows)
    assert_equal_with_gradient(ours.loss.mean(), theirs, logps)
    chosen = trainer._metrics["train"]["rewards/chosen"][-1]
    assert ours.rewards[desirable].mean().item() == pytest.approx(chosen, rel=1e-5)
