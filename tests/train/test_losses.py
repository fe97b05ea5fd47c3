"""The loss against values worked out by hand."""

import math

import pytest
import torch

from stages.train.losses import LOSSES, dpo


def test_a_policy_equal_to_the_reference_has_loss_log_two_and_no_margin():
    logps = torch.tensor([-10.0, -250.0])
    result = dpo(logps, logps - 3, logps, logps - 3, beta=0.1)
    assert torch.allclose(result.loss, torch.full((2,), math.log(2)))
    assert (result.chosen_rewards - result.rejected_rewards).abs().max() == 0


def test_margins_of_0_10_and_20_nats_at_beta_a_tenth():
    # -log sigmoid(0), -log sigmoid(1), -log sigmoid(2)
    result = dpo(
        torch.tensor([-0.5, -10.0, -1.0]),
        torch.tensor([-0.1, -30.0, -21.0]),
        torch.tensor([-0.5, -10.1, -0.1]),
        torch.tensor([-0.1, -20.1, -0.1]),
        beta=0.1,
    )
    expected = [0.6931, 0.3133, 0.1269]
    assert result.loss.tolist() == pytest.approx(expected, abs=1e-4)
    assert result.chosen_rewards.tolist() == pytest.approx([0, 0.01, -0.09], abs=1e-6)
    assert result.rejected_rewards.tolist() == pytest.approx([0, -0.99, -2.09], abs=1e-6)


def test_the_gradient_is_beta_times_the_sigmoid_of_the_negative_margin():
    chosen = torch.tensor([-3.0, -9.0], requires_grad=True, dtype=torch.float64)
    rejected = torch.tensor([-5.0, -4.0], requires_grad=True, dtype=torch.float64)
    reference = torch.tensor([-4.0, -6.0], dtype=torch.float64)
    dpo(chosen, rejected, reference, reference, beta=0.3).loss.sum().backward()
    weight = 0.3 * torch.sigmoid(-0.3 * (chosen - rejected)).detach()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert torch.allclose(chosen.grad, -weight)
    assert torch.allclose(rejected.grad, weight)


def test_a_huge_margin_of_either_sign_gives_a_finite_loss():
    huge = torch.tensor([1e4, -1e4])
    result = dpo(huge, -huge, torch.zeros(2), torch.zeros(2), beta=0.5)
    assert result.loss.isfinite().all()
    assert result.loss[1] == pytest.approx(1e4)


@pytest.mark.parametrize("name", LOSSES)
def test_rewards_carry_no_gradient(name):
    policy = torch.tensor([-3.0], requires_grad=True)
    result = LOSSES[name](policy, policy * 2, torch.zeros(1), torch.zeros(1), beta=0.1)
    assert not result.chosen_rewards.requires_grad
    assert not result.rejected_rewards.requires_grad
